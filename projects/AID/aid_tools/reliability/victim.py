"""Training process that is observed from outside and killed."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable

from aid.utils.files import PART

from .invariants import BrokenPromise, finished

__all__ = ["Victim"]

# Seconds. Writing a small checkpoint takes about 10 ms.
POLL = 0.0005
POLL_START = 0.02
PATIENCE = 300  # timeout of steps that take a few seconds


class Victim:
    """Training process, from its first iteration to the end of the context, which kills it.

    Attributes:
        start_iter: first iteration of the process.
        seen: names of all complete checkpoints observed so far.
    """

    def __init__(self, command: list[str], environment: dict[str, str], folder: str):
        """Start the process and wait for its first iteration.

        Args:
            command: command that starts the training.
            environment: environment variables of the process.
            folder: its output folder, which must exist.

        Raises:
            BrokenPromise: the process ends or makes no progress before its first iteration.
        """
        self.seen: set[str] = set()
        self._folder = folder
        self._log = os.path.join(folder, "stdout.txt")
        with open(self._log, "w") as log:
            self._process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
        try:
            self._wait_until(lambda: self._started() is not None, POLL_START)
        except BaseException:
            self.kill()
            raise
        self.start_iter = self._started()

    def __enter__(self) -> "Victim":
        return self

    def __exit__(self, *_) -> None:
        self.kill()

    def wait_for_checkpoints(self, number: int) -> None:
        """Wait until the folder holds ``number`` checkpoints."""
        self._wait_until(lambda: len(self._update_seen()) >= number)

    def wait_for_write(self) -> None:
        """Wait until a checkpoint is being written."""
        self._wait_until(self.is_writing)

    def wait(self, seconds: float, at_most: int) -> None:
        """Wait for a time in seconds, or until the folder holds ``at_most`` checkpoints."""
        end = time.monotonic() + seconds
        self._wait_until(lambda: time.monotonic() >= end or len(self._update_seen()) >= at_most)

    def wait_for_end(self) -> None:
        """Wait until the process has finished.

        Raises:
            BrokenPromise: the process failed.
        """
        if self._process.wait(PATIENCE):
            raise self._ended()

    def is_writing(self) -> bool:
        """Whether a partial checkpoint exists; after a kill, whether it hit a write."""
        return any(name.endswith(f".pth{PART}") for name in os.listdir(self._folder))

    def kill(self) -> None:
        """Kill the process by SIGKILL, which it cannot handle, unless it has ended."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def _update_seen(self) -> list[str]:
        names = finished(self._folder)
        self.seen.update(names)
        return names

    def _started(self) -> int | None:
        with open(self._log, errors="replace") as f:
            match = re.search(r"Starting training from iteration (\d+)\n", f.read())
        return match and int(match[1])

    def _wait_until(self, condition: Callable[[], bool], poll: float = POLL) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            if self._process.poll() is not None:
                raise self._ended()
            if time.monotonic() > end:
                raise BrokenPromise("other", f"{self._log}: no progress in {PATIENCE} s")
            time.sleep(poll)

    def _ended(self) -> BrokenPromise:
        with open(self._log, errors="replace") as f:
            last = " ".join(f.read().split("\n")[-2:]).strip()
        how = f"ended by itself with exit code {self._process.returncode}"
        return BrokenPromise("other", f"a training {how}, see {self._log}: {last[-300:]}")
