"""Files of weights, read so that none of them can run code."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pickle import UnpicklingError

import torch
from detectron2.checkpoint import DetectionCheckpointer
from fvcore.common.checkpoint import Checkpointer

from ..utils.errors import AIDError
from .plain_pickle import check_pickle

__all__ = ["SafeCheckpointer", "clear_load_errors", "load_file"]


def load_file(path: str) -> dict:
    """``torch.load`` onto the CPU, of tensors and plain values alone."""
    return torch.load(path, map_location="cpu", weights_only=True)


class _TensorsOnly(Checkpointer):
    def _load_file(self, f: str) -> dict:
        return load_file(f)


class SafeCheckpointer(DetectionCheckpointer, _TensorsOnly):
    """Detectron2's checkpointer, for files that hold weights and nothing that runs.

    Files of torch are read with ``weights_only=True``, as Detectron2's own does not insist on; of
    pickles, in which its model zoo comes, those that hold arrays alone.
    """

    def _load_file(self, filename: str) -> dict:
        if filename.endswith(".pkl"):
            check_pickle(filename)
        elif filename.endswith(".pyth"):
            load_file(filename)  # before Detectron2 reads it as torch's default will have it
        return super()._load_file(filename)


@contextmanager
def clear_load_errors(key: str, path: str) -> Iterator[None]:
    """Turn what a file that cannot be read raises into one line.

    Args:
        key: config key that named the file.
        path: of the file.

    Raises:
        AIDError: in place of those errors.
    """
    try:
        yield
    except AIDError:
        raise
    except Exception as error:  # unpickling what is no pickle raises anything
        is_refused = isinstance(error, UnpicklingError) and re.search(r"GLOBAL (\S+)", str(error))
        if is_refused:
            raise AIDError(
                f"{key} {path} holds {is_refused[1]}, where numbers alone belong: reading it could "
                "run code, so it was not read; docs/security.md says how to convert a file whose "
                "source you trust"
            ) from error
        # The first sentence: torch goes on with advice to read the file whatever it may do.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].split(". ")[0]
        raise AIDError(
            f"{key} {path} cannot be read ({reason}): the file may be missing, cut off, or of "
            "another kind"
        ) from error
