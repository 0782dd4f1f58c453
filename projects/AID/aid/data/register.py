"""Registration of user-defined datasets, losses, rules and detectors from a Python file."""

import functools
import os
import runpy

from ..utils.errors import AIDError

__all__ = ["register_from_file"]


def register_from_file(path: str) -> None:
    """Run a Python file that registers datasets, losses etc., once per process.

    Raises:
        AIDError: the file does not exist.
    """
    if not os.path.isfile(path):
        raise AIDError(
            f"--register {path} does not exist: name a Python file; see docs/own_data.md"
        )
    _run(os.path.realpath(path))


# Cached: registering a name twice is an error.
@functools.cache
def _run(path: str) -> None:
    runpy.run_path(path)
