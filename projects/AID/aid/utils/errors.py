"""User errors, and their display by the command-line entry points."""

import functools
import logging
import os
import sys
import warnings
from collections.abc import Callable

__all__ = [
    "AIDError",
    "filter_known_warnings",
    "ignore_known_deprecations",
    "main_with_clear_errors",
]


class AIDError(Exception):
    """Invalid input or environment. The message is one line: what is wrong, where, what to do."""


def main_with_clear_errors(main: Callable) -> Callable:
    """Decorate an entry point so that an :class:`AIDError` ends it with one line on stderr.

    The exit code is then 2, as argparse's for invalid arguments. Other exceptions are bugs and keep
    their traceback. Known deprecation warnings are hidden, see :func:`ignore_known_deprecations`.
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
            line = _one_line(error)
        # Printed outside of the except clause: the frames that failed are released by now, and
        # their progress bars closed.
        print(f"error: {line}", file=sys.stderr)
        sys.exit(2)

    return wrapper


def _one_line(error: AIDError) -> str:
    # An error in a data loader's worker process has the worker's traceback before the message.
    return " ".join(str(error).rsplit("AIDError: ", 1)[-1].split())


def ignore_known_deprecations() -> None:
    """Hide the deprecations in Detectron2 and fvcore for the rest of this process.

    Sets warning filters and the level of a torch logger; for entry points only.
    """
    filter_known_warnings()
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)


def filter_known_warnings() -> None:
    """Filter the warnings that Detectron2, fvcore and Pillow cause without need."""
    for message in (
        "pkg_resources is deprecated",
        "`torch.jit.script` is deprecated",
        "torch.meshgrid: in an upcoming release",
        "`broadcast_buffers` is deprecated",
        r"Image size \(",  # of Pillow; such an image is an error, see aid/data/images.py
    ):
        warnings.filterwarnings("ignore", message=message)
