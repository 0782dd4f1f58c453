"""A training process that is watched from outside, and killed."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable

from aid.utils.files import PART

from .invariants import BrokenPromise, finished

__all__ = ["Victim"]

# Seconds. A small checkpoint is written in some ten milliseconds.
POLL = 0.0005
POLL_START = 0.02
PATIENCE = 300  # for what takes a few


class Victim:
    """A training, from its first iteration on; it does not outlive its context.

    Attributes:
        start_iter: the iteration it started from.
        seen: names of all checkpoints that it had finished when somebody looked.
    """

    def __init__(self, command: list[str], environment: dict[str, str], folder: str):
        """Start the process and wait for its first iteration.

        Args:
            command: that starts the training.
            environment: of the process.
            folder: its output folder, which exists.

        Raises:
            BrokenPromise: it ends, or waits, before that.
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
        """Wait until the folder holds so many."""
        self._wait_until(lambda: len(self._look()) >= number)

    def wait_for_write(self) -> None:
        """Wait until a checkpoint is being written."""
        self._wait_until(self.is_writing)

    def wait(self, seconds: float, at_most: int) -> None:
        """Wait so long, but not for more checkpoints than ``at_most``."""
        end = time.monotonic() + seconds
        self._wait_until(lambda: time.monotonic() >= end or len(self._look()) >= at_most)

    def wait_for_end(self) -> None:
        """Wait until it has finished.

        Raises:
            BrokenPromise: it failed.
        """
        if self._process.wait(PATIENCE):
            raise self._ended()

    def is_writing(self) -> bool:
        """Whether there is a part of a checkpoint; of a killed process: whether it was writing."""
        return any(name.endswith(f".pth{PART}") for name in os.listdir(self._folder))

    def kill(self) -> None:
        """Kill it by SIGKILL, of which it hears nothing, if it has not ended."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def _look(self) -> list[str]:
        names = finished(self._folder)
        self.seen.update(names)
        return names

    def _started(self) -> int | None:
        with open(self._log, errors="replace") as f:
            found = re.search(r"Starting training from iteration (\d+)\n", f.read())
        return found and int(found[1])

    def _wait_until(self, is_so: Callable[[], bool], poll: float = POLL) -> None:
        end = time.monotonic() + PATIENCE
        while not is_so():
            if self._process.poll() is not None:
                raise self._ended()
            if time.monotonic() > end:
                raise BrokenPromise("other", f"{self._log}: nothing happens")
            time.sleep(poll)

    def _ended(self) -> BrokenPromise:
        with open(self._log, errors="replace") as f:
            last = " ".join(f.read().split("\n")[-2:]).strip()
        how = f"ended by itself with exit code {self._process.returncode}"
        return BrokenPromise("other", f"a training {how}, see {self._log}: {last[-300:]}")
