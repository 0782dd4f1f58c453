"""torchvision's ImageNet classifiers as backbone weights: ``torchvision://resnet18``.

A scheme of Detectron2's ``PathManager``, so that MODEL.WEIGHTS takes it. The nets want RGB images
scaled by ImageNet's mean and standard deviation, and have their stride in the 3x3 convolution:
INPUT.FORMAT "RGB", MODEL.PIXEL_MEAN and PIXEL_STD, and MODEL.RESNETS.STRIDE_IN_1X1 False, as in
``configs/backbones``.
"""

import os
import re

import torch
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler, get_cache_dir
from torch import Tensor
from torchvision.models import (
    ResNet18_Weights,
    ResNet34_Weights,
    ResNet50_Weights,
    ResNet101_Weights,
)

from ..utils.errors import AIDError

__all__ = ["TorchvisionHandler", "to_detectron2"]

PREFIX = "torchvision://"
# IMAGENET1K_V1: the weights that detection papers start from.
WEIGHTS = {
    "resnet18": ResNet18_Weights.IMAGENET1K_V1,
    "resnet34": ResNet34_Weights.IMAGENET1K_V1,
    "resnet50": ResNet50_Weights.IMAGENET1K_V1,
    "resnet101": ResNet101_Weights.IMAGENET1K_V1,
}


def to_detectron2(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the parameters of a torchvision ResNet to those of Detectron2's.

    torchvision's ``layer1`` to ``layer4`` are ``res2`` to ``res5``, a block's ``bn1`` is the norm
    of its ``conv1``, ``downsample`` is the ``shortcut``. The classifier and the counters of batch
    norm, which no detector has, are left out.
    """
    return {
        _rename(key): value
        for key, value in state_dict.items()
        if not key.startswith("fc.") and not key.endswith("num_batches_tracked")
    }


def _rename(key: str) -> str:
    key = re.sub(r"^layer(\d)", lambda match: f"res{int(match[1]) + 1}", key)
    key = re.sub(r"^(?=conv1|bn1)", "stem.", key)
    key = re.sub(r"\bbn(\d)", r"conv\1.norm", key)
    return key.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")


class TorchvisionHandler(PathHandler):
    """Downloads ``torchvision://NAME`` once, and serves the converted copy from the cache."""

    def _get_supported_prefixes(self) -> list[str]:
        return [PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs) -> str:
        """Local file of the converted weights.

        Raises:
            AIDError: an unknown name, or no connection.
        """
        name = path.removeprefix(PREFIX)
        if name not in WEIGHTS:
            raise AIDError(f"{path}: torchvision weights are served for {', '.join(WEIGHTS)}")
        local = os.path.join(get_cache_dir(), "torchvision", f"{name}-imagenet1k-v1.pth")
        if force or not os.path.isfile(local):
            state_dict = to_detectron2(_download(path, name))
            os.makedirs(os.path.dirname(local), exist_ok=True)
            part = f"{local}.{os.getpid()}.tmp"  # several processes may start at the same time
            torch.save({"model": state_dict, "matching_heuristics": True}, part)
            os.replace(part, local)
        return local

    def _isfile(self, path: str, **kwargs) -> bool:
        return path.removeprefix(PREFIX) in WEIGHTS

    def _exists(self, path: str, **kwargs) -> bool:
        return self._isfile(path)

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs):
        return open(self._get_local_path(path), mode, buffering=buffering)


def _download(path: str, name: str) -> dict[str, Tensor]:
    weights = WEIGHTS[name]
    try:
        return weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:  # urllib's errors are OSErrors; a bad hash is not
        raise AIDError(
            f"{path} cannot be downloaded from {weights.url} ({error}): connect to the network, "
            f"or put the file into {os.path.join(torch.hub.get_dir(), 'checkpoints')}, or set "
            "MODEL.WEIGHTS to a file you have"
        ) from error


PathManager.register_handler(TorchvisionHandler())
