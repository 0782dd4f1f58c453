"""Errors that a user can mend, and how entry points show them."""

import functools
import sys
from collections.abc import Callable

__all__ = ["AIDError", "main_with_clear_errors"]


class AIDError(Exception):
    """Bad input. The message is one line: what is wrong, where, and what to do about it."""


def main_with_clear_errors(main: Callable) -> Callable:
    """Decorate an entry point so that an :class:`AIDError` ends it in one line on stderr.

    The process exits with code 2, as argparse does for bad arguments. Every other exception keeps
    its traceback: it is a bug, and the traceback is what its report needs.
    """

    @functools.wraps(main)
    def wrapper(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except AIDError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    return wrapper
