"""Clear errors for values of Detectron2's keys that it accepts in a config and cannot use."""

import logging
import os
import re
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import detectron2
import torch
from detectron2.config import CfgNode

from ..utils.errors import AIDError
from ..utils.logs import log_to_file
from .access import flat_keys
from .keys import default_config

__all__ = ["changed_keys", "clear_program_errors", "clear_value_errors"]

# Errors that have a message of their own, or none that a value of the config could cause.
OTHERS = (AIDError, FloatingPointError, BrokenPipeError, IsADirectoryError, torch.OutOfMemoryError)
PACKAGES = tuple(
    os.path.join(os.path.realpath(path), "")
    for path in (
        os.path.dirname(os.path.dirname(os.path.dirname(__file__))),  # of this project
        os.path.dirname(detectron2.__file__),
        *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")),
    )
)


@contextmanager
def clear_value_errors(
    cfg: CfgNode, is_other: Callable[[Exception], bool] = lambda error: False
) -> Iterator[None]:
    """Convert errors of Detectron2 and PyTorch to an AIDError that names the key, if it is known.

    The traceback goes to the log file. An error in other files, such as one of ``--register``,
    keeps its own.

    Args:
        cfg: of the detector or run that is built inside.
        is_other: whether an error has nothing to do with the config, and is left as it is.

    Raises:
        AIDError: the config cannot be used.
    """
    try:
        yield
    except OTHERS:
        raise
    except Exception as error:  # Detectron2 and torch refuse values with errors of any type
        frames = traceback.extract_tb(error.__traceback__)
        # An error in a worker of the data loader has the worker's traceback in its message.
        files = [x.filename for x in frames] + re.findall('(?m)^ *File "(.+?)", line', str(error))
        if is_other(error) or not all(map(_is_known, files)):
            raise
        log_to_file(logging.ERROR, "The config cannot be used:", error=error)
        lines = str(error).strip().splitlines() or [""]
        text = lines[-1] if "Original Traceback" in str(error) else lines[0]
        keys = _suspects(cfg, str(error))
        advice = f"check {', '.join(keys)}" if keys else "check the keys that the config changes"
        place = _place(error)
        raise AIDError(
            f"the config cannot be used: {type(error).__name__}: {text} ({place}): {advice}; the "
            "log.txt of a run has the traceback"
        ) from error


@contextmanager
def clear_program_errors(name: str) -> Iterator[None]:
    """Convert errors of a user's program to an AIDError; the traceback is in the log file.

    Args:
        name: config key and value that name the program, for the message.

    Raises:
        AIDError: the program fails.
    """
    try:
        yield
    except OTHERS:
        raise
    except Exception as error:  # a program can raise any type
        log_to_file(logging.ERROR, "The config cannot be used:", error=error)
        text = " ".join(str(error).split())
        raise AIDError(f"{name}: {type(error).__name__}: {text} ({_place(error)})") from error


def _place(error: Exception) -> str:
    """File and line that raised an error."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{os.path.basename(frame.filename)}, line {frame.lineno}"


def changed_keys(cfg: CfgNode) -> dict[str, object]:
    """Keys, with dots, whose values are not the defaults."""
    before = flat_keys(default_config())
    return {key: x for key, x in flat_keys(cfg).items() if key not in before or before[key] != x}


def _suspects(cfg: CfgNode, message: str) -> list[str]:
    """Up to three changed keys whose values are words of an error's message."""

    def is_named(value: object) -> bool:
        word = str(value)
        return len(word) > 1 and re.search(rf"(?<!\w){re.escape(word)}(?!\w)", message) is not None

    return [key for key, value in changed_keys(cfg).items() if is_named(value)][:3]


def _is_known(path: str) -> bool:
    """Whether a file is of this project, an installed package or Python."""
    return path.startswith("<") or os.path.realpath(path).startswith(PACKAGES)
