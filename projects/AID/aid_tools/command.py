"""Start of the scripts: arguments and installation are checked before torch is imported.

Imports the standard library only, so that a script can say what is missing, and ``--help`` and
invalid arguments take no seconds.
"""

from __future__ import annotations  # an older Python shall get as far as the message below

import functools
import os
import runpy
import shlex
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

__all__ = ["command"]

REPOSITORY = Path(__file__).resolve().parents[3]
# Modules of the packages that setup.py requires; aid itself checks Detectron2.
REQUIRED = (
    *("torch", "torchvision", "cv2", "fvcore", "iopath", "matplotlib", "numpy", "PIL"),
    *("pycocotools", "tabulate", "tensorboard", "tqdm", "yaml"),
)
# How often an OpenMP thread checks whether it can go on before it gives up the core, read when
# torch is imported. With GCC's default, 300,000, it blocks the thread that it waits for if other
# programs run.
SPIN_COUNT = "5000"


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
            _check_packages()
            _check_files(args)
            _check_overrides(args)
            os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
            _import_aid()
            from aid.utils.errors import main_with_clear_errors

            return main_with_clear_errors(main)(args)

        return start

    return decorate


def _check_packages() -> None:
    """Exit with one line if Python is too old or a package is missing."""
    if sys.version_info < (3, 11):  # noqa: UP036  (a script can be started with any Python)
        sys.exit(f"error: Python 3.11 or later is needed, {sys.executable} is older: {_how()}")
    missing = next((name for name in REQUIRED if find_spec(name) is None), None)
    if missing:
        message = f"{missing} is not installed for {sys.executable}: {_how()}"
        sys.exit(f"error: {message}")


def _how() -> str:
    """How to install what is missing, in commands that are valid in the current folder."""
    if Path.cwd() == REPOSITORY:
        return "run `make install`, then `. .venv/bin/activate`"
    return f"run `make install` in {REPOSITORY}, then `. {REPOSITORY}/.venv/bin/activate`"


def _check_files(args: Namespace) -> None:
    """Exit with one line if a file of ``register``, ``config_file`` or ``weights`` is missing."""
    given = vars(args)
    register = given.get("register") or []
    files = [("--register", x) for x in ([register] if isinstance(register, str) else register)]
    files += [("--config-file", given.get("config_file")), ("--weights", given.get("weights"))]
    for option, path in files:
        # Some scripts take names of configs in Detectron2's model zoo.
        places = ("", *_model_zoo()) if option == "--config-file" else ("",)
        is_local = path and "://" not in path
        if is_local and not any(os.path.exists(os.path.join(x, path)) for x in places):
            hint = _from_aid("suggestions", "did_you_mean_file")(path, *places)
            _fail(f"{option} {path} does not exist{hint}: check the path")


def _model_zoo() -> list[str]:
    """Folder of the configs of Detectron2's model zoo, if Detectron2 is installed."""
    spec = find_spec("detectron2")
    return [os.path.join(os.path.dirname(spec.origin), "model_zoo", "configs")] if spec else []


def _check_overrides(args: Namespace) -> None:
    """Exit with one line if ``opts`` has an option of the script or is no list of pairs."""
    opts = vars(args).get("opts") or []
    for word in opts:
        if word.startswith("--"):
            _fail(f"{word} stands behind KEY VALUE: put options before the keys of the config")
    if not len(opts) % 2 or "=" in opts[0] or args.config_file.endswith(".py"):
        return  # a LazyConfig has KEY=VALUE
    _fail(
        f"command line options: {shlex.join(opts)} is an odd number of words, where KEY VALUE "
        "pairs belong: quote values with spaces or brackets, such as INPUT.MIN_SIZE_TRAIN "
        "'(160, 192)'"
    )


def _from_aid(module: str, name: str) -> Callable:
    """Function of a module in aid.utils, without aid itself, which imports torch."""
    folder = os.path.dirname(find_spec("aid").origin)
    return runpy.run_path(os.path.join(folder, "utils", f"{module}.py"))[name]


def _fail(message: str) -> None:
    """Exit with the code of wrong arguments."""
    print(f"error: {_from_aid('text', 'one_line')(message)}", file=sys.stderr)
    sys.exit(2)


def _import_aid() -> None:
    """Import aid; exit with one line if that is not possible."""
    try:
        import aid  # noqa: F401  (registers models, losses and datasets)
    except ImportError as error:
        sys.exit(f"error: {error}")
