"""User errors, and their display by the command-line entry points."""

import functools
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .text import one_line

__all__ = [
    "AIDError",
    "check_not_negative",
    "error_line",
    "filter_known_warnings",
    "ignore_known_deprecations",
    "main_with_clear_errors",
    "no_file",
    "without_known_warnings",
]

# Loggers of torch for deprecations in Detectron2. The second reports, whenever Detectron2 describes
# the environment, that there is no GPU.
NOISY = ("torch.fx._symbolic_trace", "torch.utils.cpp_extension")


class AIDError(Exception):
    """Invalid input or environment. The message is one line: what is wrong, where, what to do.

    What it quotes is made safe for a terminal.
    """

    def __str__(self) -> str:
        return one_line(super().__str__())


def check_not_negative(key: str, value: float) -> None:
    """Check that a number is at least 0 and finite.

    Args:
        key: its config key, for the message.
        value: the number.

    Raises:
        AIDError: it is negative, NaN or infinite.
    """
    if not 0 <= value < float("inf"):
        raise AIDError(f"{key} is {value}: it must be 0 or more, and finite")


def check_positive(key: str, value: float) -> None:
    """Check that a number is above 0 and finite; see :func:`check_not_negative`."""
    if not 0 < value < float("inf"):
        raise AIDError(f"{key} is {value}: it must be above 0, and finite")


def check_one_or_more(key: str, value: int) -> None:
    """Check that a number is 1 or more; see :func:`check_not_negative`."""
    if value < 1:
        raise AIDError(f"{key} is {value}: it must be 1 or more")


def main_with_clear_errors(main: Callable) -> Callable:
    """Decorate an entry point so that an :class:`AIDError` ends it with one line on stderr.

    The exit code is then 2, as argparse's for invalid arguments, and 130 after Ctrl-C. Other
    exceptions are bugs and keep their traceback. Known deprecation warnings are hidden, see
    :func:`ignore_known_deprecations`.
    """

    @functools.wraps(main)
    def wrapper(*args, **kwargs):
        ignore_known_deprecations()
        try:
            result = main(*args, **kwargs)
            sys.stdout.flush()
            return result
        except BrokenPipeError:
            # The reader of stdout, such as head, has exited. Without the redirection, Python would
            # report the broken pipe once more at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except AIDError as error:
            line, code = error_line(error), 2
        except IsADirectoryError as error:
            line, code = str(no_file(error)), 2
        except KeyboardInterrupt as error:
            line, code = str(error) or "interrupted", 130  # as shells report it
        # Printed outside of the except clause: the frames that failed are released by now, and
        # their progress bars closed.
        print(f"error: {line}", file=sys.stderr)
        sys.exit(code)

    return wrapper


def no_file(error: IsADirectoryError) -> AIDError:
    """Create the error of a folder that stands where a file belongs."""
    path = error.filename2 or error.filename
    return AIDError(f"{path} is a folder, where a file belongs: remove it, or name a file")


def error_line(error: AIDError) -> str:
    """Message of an error, without the traceback that one of a loader's worker has before it."""
    return str(error).rsplit("AIDError: ", 1)[-1]


def ignore_known_deprecations() -> None:
    """Hide the deprecations in Detectron2 and fvcore for the rest of this process.

    Sets warning filters and the levels of torch loggers; for entry points only.
    """
    filter_known_warnings()
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def without_known_warnings() -> Iterator[None]:
    """Hide the warnings of :func:`ignore_known_deprecations` inside the context only."""
    loggers = list(map(logging.getLogger, NOISY))
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        ignore_known_deprecations()
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def filter_known_warnings() -> None:
    """Suppress harmless warnings of Detectron2, fvcore, torch and Pillow."""
    for message in (
        "pkg_resources is deprecated",
        r"`torch.jit.(script|load)` is deprecated",
        "torch.meshgrid: in an upcoming release",
        "`broadcast_buffers` is deprecated",
        "This DataLoader will create",  # more workers than cores; the log of a run has both numbers
        r"Image size \(",  # of Pillow; such an image is an error, see aid/data/images.py
    ):
        warnings.filterwarnings("ignore", message=message)
