"""Errors that a user can mend, and how entry points show them."""

import functools
import logging
import os
import sys
import warnings
from collections.abc import Callable

__all__ = ["AIDError", "ignore_known_deprecations", "main_with_clear_errors"]


class AIDError(Exception):
    """Bad input. The message is one line: what is wrong, where, and what to do about it."""


def main_with_clear_errors(main: Callable) -> Callable:
    """Decorate an entry point so that an :class:`AIDError` ends it in one line on stderr.

    The process exits with code 2, as argparse does for bad arguments. Every other exception keeps
    its traceback: it is a bug, and the traceback is what its report needs. Deprecations about which
    a user can do nothing are not shown.
    """

    @functools.wraps(main)
    def wrapper(*args, **kwargs):
        ignore_known_deprecations()
        try:
            result = main(*args, **kwargs)
            sys.stdout.flush()
            return result
        except BrokenPipeError:
            # Whoever reads the output, such as head, has seen enough; nor is it told at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except AIDError as error:
            line = _one_line(error)
        # Only now the frames of what failed are gone, and progress bars with them.
        print(f"error: {line}", file=sys.stderr)
        sys.exit(2)

    return wrapper


def _one_line(error: AIDError) -> str:
    # From a worker process of a data loader the message comes with the traceback before it.
    return " ".join(str(error).rsplit("AIDError: ", 1)[-1].split())


def ignore_known_deprecations() -> None:
    """Filter the warnings that Detectron2 and fvcore give rise to on every run."""
    for message in (
        "pkg_resources is deprecated",
        "`torch.jit.script` is deprecated",
        "torch.meshgrid: in an upcoming release",
        "`broadcast_buffers` is deprecated",
    ):
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
