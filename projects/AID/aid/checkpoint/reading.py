"""Safe loading of weight files: no file can run code."""

import os
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pickle import UnpicklingError
from urllib.parse import urlparse

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import Detectron2Handler
from fvcore.common.checkpoint import Checkpointer
from iopath.common.file_io import get_cache_dir

from ..utils.errors import AIDError
from ..utils.suggestions import did_you_mean_file
from .finite import NonFiniteError, non_finite
from .plain_pickle import check_pickle

__all__ = [
    "SafeCheckpointer",
    "check_kinds",
    "clear_load_errors",
    "last_checkpoint",
    "load_file",
    "local_file",
    "of_other_shapes",
]

# Largest ratio of the content of a file of PyTorch to the file. PyTorch does not compress.
MAX_GROWTH = 4


def load_file(path: str) -> dict:
    """Load a file of PyTorch onto the CPU; only tensors and plain values are allowed.

    Raises:
        ValueError: the file is compressed and would take many times its size in memory.
        Exception: of any kind, if the file is no file of PyTorch, or not safe.
    """
    _check_growth(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _check_growth(path: str) -> None:
    """Check the size of a file's content before it is read; see :func:`load_file`."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        content = sum(entry.file_size for entry in archive.infolist())
    size = os.path.getsize(path)
    if content > MAX_GROWTH * size:
        raise ValueError(
            f"its {size / 1e6:.3g} MB hold {content / 1e6:.3g} MB, while PyTorch does not compress"
        )


def last_checkpoint(folder: str) -> str:
    """Read the file name of the last checkpoint in an output folder; "" if there is none.

    Raises:
        AIDError: the file ``last_checkpoint`` cannot be read or leads out of the folder.
    """
    path = os.path.join(folder, "last_checkpoint")
    try:
        with open(path, encoding="utf-8") as f:
            name = f.read().strip()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except (OSError, UnicodeError) as error:
        raise AIDError(
            f"{path} cannot be read ({error}): remove it, and write the name of a checkpoint "
            "beside it into a new one"
        ) from error
    if os.path.basename(name) != name or not name.endswith(".pth") or not name.isprintable():
        raise AIDError(
            f"{path} holds {name[:80]!r}: write the name of a checkpoint beside it there, such as "
            "model_final.pth"
        )
    return name


class _TensorsOnly(Checkpointer):
    def _load_file(self, f: str) -> dict:
        return load_file(f)

    def _load_model(self, checkpoint: dict):
        """Load the model's weights, after they got the model's names.

        Raises:
            TypeError: see :func:`check_kinds`.
        """
        weights = checkpoint["model"]
        self._convert_ndarray_to_tensor(weights)
        check_kinds(weights, self.model.state_dict())
        return super()._load_model(checkpoint)


def check_kinds(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Check that the dtypes of a file's tensors are of the same kind as the model's.

    PyTorch would convert them: drop the imaginary part of complex numbers, and use masks and the
    codes of a quantized model as weights.

    Args:
        found: tensors of the file by name; names that are not in ``expected`` are ignored.
        expected: state dict of the model.

    Raises:
        TypeError: a tensor has another kind of dtype, such as complex or boolean.
    """
    for name, tensor in expected.items():
        for key in (name, f"module.{name}"):  # the latter if saved with DDP wrapper
            if key in found and _kind(found[key]) != _kind(tensor):
                raise TypeError(
                    f"{name} is {found[key].dtype} in the file, {tensor.dtype} in the model"
                )


def of_other_shapes(
    found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]
) -> list[str]:
    """Sorted names of the tensors that differ in shape or that only one of the two has."""
    shapes = [{k: x.shape for k, x in tensors.items()} for tensors in (found, expected)]
    names = found.keys() | expected.keys()
    return sorted(k for k in names if shapes[0].get(k) != shapes[1].get(k))


def _kind(x: torch.Tensor) -> str:
    if x.is_floating_point():
        return "floating point"
    return str(x.dtype) if x.is_complex() or x.dtype == torch.bool or x.is_quantized else "integer"


class SafeCheckpointer(DetectionCheckpointer, _TensorsOnly):
    """Detectron2's checkpointer, restricted to finite numbers in files that cannot run code.

    Files of PyTorch are loaded with ``weights_only=True``, which Detectron2 does not ensure.
    Pickles, the format of Detectron2's model zoo, may contain plain arrays only.
    """

    def load(self, path: str, *args, **kwargs) -> dict:
        """Load a file; the name of a local one is used as it is.

        Detectron2 parses it as a URL, and would read ``a`` for ``a?b`` and ``a:b`` for ``A:b``.
        """
        if not (path and os.path.isfile(path)):
            return super().load(path, *args, **kwargs)
        self._parsed_url_during_load = urlparse("")  # without a query
        try:
            return Checkpointer.load(self, path, *args, **kwargs)
        finally:
            self._parsed_url_during_load = None

    def get_checkpoint_file(self) -> str:
        """Path of the last checkpoint in the save folder; "" if there is none.

        Raises:
            AIDError: see :func:`last_checkpoint`.
        """
        name = last_checkpoint(self.save_dir)
        return os.path.join(self.save_dir, name) if name else ""

    def _load_file(self, filename: str) -> dict:
        if filename.endswith(".pkl"):
            check_pickle(filename)
        elif filename.endswith(".pyth"):
            load_file(filename)  # a check: Detectron2 then loads it with PyTorch's defaults
        return super()._load_file(filename)

    def _load_model(self, checkpoint: dict):
        incompatible = super()._load_model(checkpoint)
        # Of the model, where a large number of a more precise type has become infinite.
        if broken := non_finite(self.model.state_dict()):
            raise NonFiniteError(broken)
        return incompatible


def local_file(path: str) -> str:
    """Path of weights on this machine without Detectron2's query ``?matching_heuristics=True``."""
    return path if os.path.exists(path) else path.partition("?")[0]


@contextmanager
def clear_load_errors(
    key: str, path: str, remedy: Callable[[str], str] | None = None
) -> Iterator[None]:
    """Convert errors of loading a file to an AIDError.

    Args:
        key: config key of the path.
        path: of the file.
        remedy: function of ``path`` that returns advice for a damaged file.

    Raises:
        AIDError: the file cannot be read, is not safe, or holds NaN or infinity.
    """
    try:
        yield
    except AIDError:
        raise
    except NonFiniteError as error:
        raise AIDError(
            f"{key} {path} holds {error}: the training that wrote it diverged; choose an earlier "
            "checkpoint, or train again"
        ) from error
    except Exception as error:  # an invalid pickle can raise any exception
        is_refused = isinstance(error, UnpicklingError) and re.search(r"GLOBAL (\S+)", str(error))
        if is_refused:
            raise AIDError(
                f"{key} {path} holds {is_refused[1]}, where numbers alone belong: reading it could "
                "run code, so it was not read; docs/security.md says how to convert a file whose "
                "source you trust"
            ) from error
        # First sentence only: PyTorch continues with advice to load the file unsafely.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].split(". ")[0]
        if path.startswith(Detectron2Handler.PREFIX) and isinstance(error, OSError):
            name = path.removeprefix(Detectron2Handler.PREFIX)
            raise AIDError(
                f"{key} {path} cannot be downloaded from {Detectron2Handler.S3_DETECTRON2_PREFIX}"
                f"{name} ({reason}): connect to the network, or put the file at "
                f"{os.path.join(get_cache_dir(), 'detectron2', name)}, or set {key} to a file you "
                "have"
            ) from error
        if "://" not in path and not os.path.exists(local_file(path)):
            raise AIDError(
                f"{key} {path} does not exist{did_you_mean_file(local_file(path))}: restore it, or "
                "name another file"
            ) from error
        raise AIDError(
            f"{key} {path} cannot be read ({reason}): the file may be cut off, or of another kind"
            + (f"; {remedy(path)}" if remedy else "")
        ) from error
