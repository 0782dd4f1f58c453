"""Datasets, losses, rules and detectors of the user's own, registered in a file of theirs."""

import functools
import os
import runpy

from ..utils.errors import AIDError

__all__ = ["register_from_file"]


def register_from_file(path: str) -> None:
    """Run a Python file that registers datasets and the like, unless this process has done so.

    Raises:
        AIDError: there is no such file.
    """
    if not os.path.isfile(path):
        raise AIDError(
            f"--register {path} does not exist: name a Python file; see docs/own_data.md"
        )
    _run(os.path.realpath(path))


# Registries refuse a name that they have already.
@functools.cache
def _run(path: str) -> None:
    runpy.run_path(path)
