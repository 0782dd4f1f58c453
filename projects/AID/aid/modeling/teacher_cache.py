"""Cache of a teacher's outputs on disk, for training on few views of few images."""

import hashlib
import logging
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from uuid import uuid4

import detectron2
import torch
import torchvision
from torch import Tensor, nn

from ..utils.errors import AIDError
from ..utils.files import check_folder_name, check_writable, whole_file

__all__ = ["TeacherCache", "digest"]

# Number of files that a process writes before it measures the size of the folder again.
COUNT = 32
# Bytes that are left free on the disk, on which the checkpoints of the run may be, too.
RESERVE = 2**30


class TeacherCache:
    """Outputs of a frozen network, one file for each image: feature maps, and losses per instance.

    A file is named by all that its content depends on: the image after augmentation, preprocessing
    and padding, the network with its weights and settings, precision, the kind of device and the
    versions of the libraries; for losses also the ground truth, the image size, the class map, the
    kind of background and the code of this package. Files are thus never stale unless the code of
    the network changes, and several runs may share a folder. What is not there is computed. What is
    read equals what was computed, bit for bit. The last bits of what is computed may depend on the
    other images of the batch.
    """

    def __init__(self, folder: str, max_gib: float, network: nn.Module, settings: str):
        """
        Args:
            folder: folder of the files, see TEACHER.CACHE.
            max_gib: size of the folder at which nothing more is stored.
            network: network whose outputs are stored.
            settings: what the network computes, as far as its modules do not show it.

        Raises:
            AIDError: the folder cannot be written, or the size is negative.
        """
        check_folder_name("TEACHER.CACHE", folder)
        if not max_gib >= 0:
            raise AIDError(f"TEACHER.CACHE_GIB is {max_gib}: it must be 0 or more")
        self._folder = folder
        try:
            check_writable(os.path.join(folder, "features.pth"))
        except AIDError as error:
            raise AIDError(f"TEACHER.CACHE: {error}; name a folder that can be written") from error
        self._limit = max_gib * 2**30
        self._num_written = 0
        self._left = 0.0  # bytes that may still be stored
        self._is_open = True  # until a warning says that nothing more is stored
        versions = (x.__version__ for x in (torch, torchvision, detectron2))
        self._network = digest(repr(network), settings, *versions)
        for name, x in network.state_dict().items():
            self._network = digest(self._network, name, x)

    def keys(self, images: Tensor) -> list[str]:
        """Keys of the feature maps of a batch.

        Args:
            images: (N, C, H, W), N images after preprocessing and padding.
        """
        kind = images.device.type
        precision = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind)
        return [digest(self._network, kind, precision, image) for image in images]

    def __call__(
        self, keys: list[str], compute: Callable[[list[int]], list[dict[str, Tensor]]]
    ) -> list[dict[str, Tensor]]:
        """Read the outputs of a batch, and compute and store those that are not there.

        Args:
            keys: of the N images.
            compute: function from indices of images to the outputs of each of them, by name.

        Returns:
            The outputs of each image. Those that were read are on the CPU.
        """
        paths = [os.path.join(self._folder, f"{key}.pth") for key in keys]
        found = [_read(path) for path in paths]
        new = [n for n, outputs in enumerate(found) if outputs is None]
        for n, outputs in zip(new, compute(new) if new else [], strict=True):
            self._write(paths[n], outputs)
            found[n] = outputs
        return [outputs for outputs in found if outputs is not None]

    def _write(self, path: str, outputs: dict[str, Tensor]) -> None:
        """Store the outputs of an image; a folder that has no room is not written any more."""
        if not self._is_open:
            return
        # Runs may store the same image at the same time, in containers with equal process ids.
        own = f"{path}.{uuid4().hex}"
        try:
            if self._num_written % COUNT == 0:  # other processes may write there, too
                room = shutil.disk_usage(self._folder).free - RESERVE
                self._left = min(self._limit - _size(self._folder), room)
            if self._left >= sum(x.nbytes for x in outputs.values()):
                with whole_file(own, sync=False) as f:
                    torch.save({k: y.cpu().clone() for k, y in outputs.items()}, f)
                os.replace(own, path)
                self._left -= os.path.getsize(path)
                self._num_written += 1
                return
            reason = "has the size of TEACHER.CACHE_GIB, or less than 1 GiB free on its disk"
        except (OSError, RuntimeError) as error:  # torch raises a RuntimeError on a full disk
            cause = error.strerror if isinstance(error, OSError) else "no room on its disk"
            reason = f"cannot be written ({cause})"
        self._is_open = False
        logging.getLogger(__name__).warning(
            "TEACHER.CACHE %s %s: further outputs are computed at each use; make room there, or "
            "raise the limit",
            self._folder,
            reason,
        )


def _size(folder: str) -> int:
    """Size of the files in a folder, in bytes; other processes may rename them meanwhile."""
    size = 0
    for entry in os.scandir(folder):
        with suppress(OSError):
            size += entry.stat(follow_symlinks=False).st_size
    return size


def _read(path: str) -> dict[str, Tensor] | None:
    """Content of a file; None if there is none, or if it is damaged."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch raises errors of many types for damaged files
        return None
    is_valid = isinstance(content, dict) and all(isinstance(x, Tensor) for x in content.values())
    return content if is_valid and content else None


def digest(*parts: object) -> str:
    """Hash of tensors by their content, and of other objects by their representation."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, Tensor):
            data = part.detach().cpu().contiguous()
            state.update(f"{data.dtype} {tuple(data.shape)} ".encode())
            state.update(data.reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            state.update(f"{part} ".encode())
    return state.hexdigest()
