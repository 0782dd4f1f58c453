"""Registration of user-defined datasets, losses, rules and detectors from a Python file."""

import functools
import os
import runpy
import sys
import traceback

from ..utils.commands import REGISTERED
from ..utils.errors import AIDError

__all__ = ["register_from_file"]


def register_from_file(path: str) -> None:
    """Run a Python file that registers datasets, losses etc., once per process.

    It may import modules from its folder.

    Raises:
        AIDError: the file does not exist, or running it raised an error.
    """
    if not os.path.isfile(path):
        raise AIDError(
            f"--register {path} does not exist: name a Python file; see docs/own_data.md"
        )
    real = os.path.realpath(path)
    try:
        _run(real)
    except (Exception, SystemExit) as error:  # anything can happen in there
        line = _line_in(real, error)
        where = f"--register {path}{f', line {line}' if line else ''}"
        raise AIDError(f"{where}: {_reason(error)}") from error
    if path not in REGISTERED:
        REGISTERED.append(path)


# Cached: registering a name twice is an error.
@functools.cache
def _run(path: str) -> None:
    folder = os.path.dirname(path)
    if folder not in sys.path:
        # At the end: a file there must not replace a module of the packages.
        sys.path.append(folder)
    runpy.run_path(path)


def _line_in(path: str, error: BaseException) -> int | None:
    """Line of the file where an error was raised or passed through last; None if none was."""
    if isinstance(error, SyntaxError) and error.filename == path:
        return error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    return next((x.lineno for x in reversed(frames) if x.filename == path), None)


def _reason(error: BaseException) -> str:
    if isinstance(error, AIDError) or (isinstance(error, AssertionError) and str(error)):
        return str(error)  # a sentence, such as that a name is registered already
    message = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}{': ' if message else ''}{message}"
