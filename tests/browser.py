"""A headless Chromium, spoken to over a pipe in its DevTools protocol: no package, no port."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time

__all__ = ["Browser", "find_chromium"]

# Starts a program that reads file descriptor 3 and writes 4, by the numbers of ours.
LAUNCHER = """
import fcntl, os, sys
ours = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3]]
for number, wanted in zip(ours, (3, 4)):
    os.dup2(number, wanted)
os.execv(sys.argv[3], sys.argv[3:])
"""
# Of one answer.
SECONDS = 60
OPTIONS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox",  # refused to root, whom containers run as; it sees our own page alone
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
)


def find_chromium() -> str | None:
    """Path of a Chromium or Chrome, if one is installed."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None)


class Browser:
    """One page in a browser of its own; a context manager.

    Attributes:
        events: what the browser told of the page, in its order, as dicts with "method" and
            "params".
    """

    def __init__(self, chromium: str, profile: str):
        """
        Args:
            chromium: path of the program.
            profile: folder for its profile.
        """
        self.events, self._number, self._session, self._rest = [], 0, None, b""
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        launch = [sys.executable, "-c", LAUNCHER, str(theirs_in), str(theirs_out), chromium]
        self._process = subprocess.Popen(
            [*launch, *OPTIONS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(theirs_in, theirs_out),
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        os.set_blocking(self._in, False)

    def __enter__(self) -> "Browser":
        try:
            target = self.call("Target.getTargets")["targetInfos"]
            page = next(x["targetId"] for x in target if x["type"] == "page")
            attached = self.call("Target.attachToTarget", targetId=page, flatten=True)
            self._session = attached["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.call(f"{domain}.enable")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        self._session = None
        with contextlib.suppress(OSError, TimeoutError):
            self.call("Browser.close")
        os.close(self._out)
        os.close(self._in)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def call(self, method: str, **params) -> dict:
        """The protocol's answer to one of its methods.

        Raises:
            RuntimeError: the browser refuses.
            TimeoutError: it does not answer.
        """
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self.events.append(answer)

    def _read(self) -> dict:
        end = time.monotonic() + SECONDS
        while b"\0" not in self._rest:
            try:
                read = os.read(self._in, 1 << 20)
                if not read:
                    raise BrokenPipeError("the browser has ended")
                self._rest += read
            except BlockingIOError:
                if time.monotonic() > end:
                    raise TimeoutError("the browser does not answer") from None
                time.sleep(0.01)
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def open(self, url: str) -> None:
        """Load a page; returns when its pictures are there too."""
        self.events.clear()
        self.call("Page.navigate", url=url)
        end = time.monotonic() + SECONDS
        while not any(x["method"] == "Page.loadEventFired" for x in self.events):
            self.call("Page.getLayoutMetrics")  # reads the events on the way
            if time.monotonic() > end:
                raise TimeoutError(f"{url} is not loaded")

    def evaluate(self, expression: str):
        """The value of a JavaScript expression in the page.

        Raises:
            RuntimeError: it throws.
        """
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"]["description"])
        return answer["result"].get("value")

    def resize(self, width: int, height: int, mobile: bool = False) -> None:
        """Make the screen one of so many CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=mobile,
        )

    def screenshot(self, path: str) -> None:
        """Write the whole page as a PNG."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        with open(path, "wb") as f:
            f.write(base64.b64decode(shot["data"]))
