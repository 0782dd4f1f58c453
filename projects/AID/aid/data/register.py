"""Datasets of the user's own, registered in a file of the user's own."""

import os
import runpy

from ..errors import AIDError

__all__ = ["register_from_file"]


def register_from_file(path: str) -> None:
    """Run a Python file that registers datasets in Detectron2's catalog.

    Raises:
        AIDError: there is no such file.
    """
    if not os.path.isfile(path):
        raise AIDError(
            f"--register {path} does not exist: name a Python file; see docs/own_data.md"
        )
    runpy.run_path(path)
