"""Start of the scripts: arguments and installation are checked before torch is imported.

Imports the standard library only, so that a script can say what is missing, and ``--help`` and
invalid arguments take no seconds.
"""

from __future__ import annotations  # an older Python shall get as far as the message below

import functools
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from importlib.util import find_spec

__all__ = ["command"]

HOW = "run `make install`, then `. .venv/bin/activate`"
# Modules of the packages that setup.py requires; aid itself checks Detectron2.
REQUIRED = (
    *("torch", "torchvision", "cv2", "fvcore", "iopath", "matplotlib", "numpy", "PIL"),
    *("pycocotools", "tabulate", "tensorboard", "tqdm", "yaml"),
)


def command(build_parser: Callable[[], ArgumentParser]) -> Callable:
    """Decorate the main function of a script, which imports what it needs itself.

    The decorated function takes the arguments as a list of strings, by default those of the command
    line, and calls the main function with the parsed arguments. Errors end it as described in
    :func:`aid.utils.errors.main_with_clear_errors`; if a package is missing, the exit code is 1.

    Args:
        build_parser: creates the parser of the arguments.
    """

    def decorate(main: Callable[[Namespace], object]) -> Callable:
        if main.__module__ == "__mp_main__":  # in a process that the script has spawned
            import aid  # noqa: F401  (before Detectron2, whose known deprecations it hides)

        @functools.wraps(main)
        def start(argv: list[str] | None = None) -> object:
            args = build_parser().parse_args(argv)
            _check_installation()
            from aid.utils.errors import main_with_clear_errors

            return main_with_clear_errors(main)(args)

        return start

    return decorate


def _check_installation() -> None:
    """Import aid; exit with one line if that is not possible."""
    if sys.version_info < (3, 11):  # noqa: UP036  (a script can be started with any Python)
        sys.exit(f"error: Python 3.11 or later is needed, {sys.executable} is older: {HOW}")
    missing = next((name for name in REQUIRED if find_spec(name) is None), None)
    if missing:
        message = f"{missing} is not installed for {sys.executable}: {HOW}"
        sys.exit(f"error: {message}")
    try:
        import aid  # noqa: F401  (registers models, losses and datasets)
    except ImportError as error:
        sys.exit(f"error: {error}")
