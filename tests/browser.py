"""Headless Chromium, controlled over a pipe by its DevTools protocol, without packages."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time

__all__ = ["Browser", "find_chromium"]

# Starts a program that reads file descriptor 3 and writes to 4, given the numbers of two others.
LAUNCHER = """
import fcntl, os, sys
pipes = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3]]
for number, target in zip(pipes, (3, 4)):
    os.dup2(number, target)
os.execv(sys.argv[3], sys.argv[3:])
"""
# Time-out of one response.
SECONDS = 60
OPTIONS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox",  # required by root in containers; loads only local pages
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
    """A browser with one page; a context manager.

    Attributes:
        events: events of the page in their order, as dicts with "method" and "params".
    """

    def __init__(self, chromium: str, profile: str):
        """
        Args:
            chromium: path of the program.
            profile: folder for its profile.
        """
        self.events, self._number, self._session, self._rest = [], 0, None, b""
        child_in, self._out = os.pipe()
        self._in, child_out = os.pipe()
        launch = [sys.executable, "-c", LAUNCHER, str(child_in), str(child_out), chromium]
        self._process = subprocess.Popen(
            [*launch, *OPTIONS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(child_in, child_out),
            stderr=subprocess.DEVNULL,
        )
        os.close(child_in)
        os.close(child_out)
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
        """Call a method of the protocol and return its result.

        Raises:
            RuntimeError: the browser returns an error.
            TimeoutError: the browser does not respond.
        """
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            response = self._read()
            if response.get("id") == self._number:
                if "error" in response:
                    raise RuntimeError(f"{method}: {response['error']['message']}")
                return response["result"]
            self.events.append(response)

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
                    raise TimeoutError("the browser does not respond") from None
                time.sleep(0.01)
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def open(self, url: str) -> None:
        """Load a page with its images."""
        self.events.clear()
        self.call("Page.navigate", url=url)
        end = time.monotonic() + SECONDS
        while not any(x["method"] == "Page.loadEventFired" for x in self.events):
            self.call("Page.getLayoutMetrics")  # reads pending events
            if time.monotonic() > end:
                raise TimeoutError(f"{url} is not loaded")

    def evaluate(self, expression: str):
        """Value of a JavaScript expression in the page.

        Raises:
            RuntimeError: the expression throws.
        """
        response = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in response:
            raise RuntimeError(response["exceptionDetails"]["exception"]["description"])
        return response["result"].get("value")

    def resize(self, width: int, height: int, mobile: bool = False) -> None:
        """Set the size of the screen in CSS pixels."""
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
