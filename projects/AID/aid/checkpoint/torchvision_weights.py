"""ImageNet weights of torchvision for backbones, by paths like ``torchvision://resnet18``.

Detectron2's ``PathManager`` handles these paths, e.g. in MODEL.WEIGHTS. ResNets get the parameter
names of Detectron2's; other models keep those of torchvision, as
:class:`~aid.modeling.detectors.TorchvisionBackbone` does. All require RGB images standardized by
the mean and standard deviation of their training, and the ResNets have the stride in the 3x3
convolution: INPUT.FORMAT "RGB", MODEL.PIXEL_MEAN, MODEL.PIXEL_STD and MODEL.RESNETS.STRIDE_IN_1X1
False, as in ``configs/backbones``.
"""

import logging
import os
import re
from uuid import uuid4

import numpy as np
import torch
import torchvision
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler, get_cache_dir
from torch import Tensor
from torchvision.models import WeightsEnum, get_model_weights, list_models

from ..utils.errors import AIDError
from ..utils.files import whole_file

__all__ = ["TorchvisionHandler", "check_torchvision_weights", "to_detectron2"]

PREFIX = "torchvision://"
IMAGENET = "IMAGENET1K_V1"  # the initialization in most detection papers
RESNET = re.compile(r"resnet\d+")
# Old names in torchvision's DenseNet files, which its own loading replaces, too.
DENSE_LAYER = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(?=\d)")


def to_detectron2(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert the parameter names of a torchvision ResNet to those of Detectron2.

    ``layer1`` to ``layer4`` become ``res2`` to ``res5``, ``bn1`` the norm of ``conv1``, and
    ``downsample`` the ``shortcut``. The classifier and ``num_batches_tracked`` are dropped.
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
    """Path handler that downloads and converts ``torchvision://NAME`` once, then uses the cache."""

    def _get_supported_prefixes(self) -> list[str]:
        return [PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs) -> str:
        """Return the path of the converted weights.

        Raises:
            AIDError: the name is unknown, the download failed, or the cache cannot be written.
        """
        name = path.removeprefix(PREFIX)
        weights = _weights(name)
        if weights is None:
            raise AIDError(
                f"{path}: torchvision has no such ImageNet weights; write one of "
                f"{', '.join(x for x in list_models(module=torchvision.models) if _weights(x))}"
            )
        local = os.path.join(get_cache_dir(), "torchvision", f"{name}-imagenet1k-v1.pth")
        if force or not os.path.isfile(local):
            state_dict = _download(path, weights)
            if RESNET.fullmatch(name):
                state_dict = to_detectron2(state_dict)
            state_dict = {DENSE_LAYER.sub(r"\1", key): x for key, x in state_dict.items()}
            _write({"model": state_dict, "matching_heuristics": True}, local, path)
        return local


def _write(content: dict, file: str, path: str) -> None:
    """Write the converted weights of ``path``; other processes may do so at the same time."""
    own = f"{file}.{uuid4().hex}"
    try:
        os.makedirs(os.path.dirname(file), exist_ok=True)
        with whole_file(own) as f:
            torch.save(content, f)
        os.replace(own, file)
    except (OSError, RuntimeError) as error:  # torch raises a RuntimeError on a full disk
        raise AIDError(
            f"{path} cannot be written to {os.path.dirname(file)}: make room there, or name "
            "another folder for downloads in the environment variable FVCORE_CACHE"
        ) from error


def check_torchvision_weights(cfg: CfgNode) -> None:
    """Check that ``torchvision://`` weights in MODEL.WEIGHTS fit the backbone and the images.

    Weights of another network of the same family would be loaded in part, and images of another
    format would lower AP. A warning lists keys of the preprocessing that differ.

    Args:
        cfg: config of a detector.

    Raises:
        AIDError: the weights are those of another network than the backbone.
    """
    path, name = cfg.MODEL.WEIGHTS, _name_of_backbone(cfg)
    weights = _weights(path.removeprefix(PREFIX)) if path.startswith(PREFIX) else None
    if weights is None:
        return
    if name and path != PREFIX + name:
        raise AIDError(
            f"MODEL.WEIGHTS {path} belong to another network than the backbone, which is {name} by "
            f"MODEL.RESNETS.DEPTH or TORCHVISION.NAME: set MODEL.WEIGHTS to {PREFIX}{name}"
        )
    differing = [] if cfg.INPUT.FORMAT == "RGB" else ["INPUT.FORMAT RGB"]
    images = weights.transforms()
    for key, values in (("PIXEL_MEAN", images.mean), ("PIXEL_STD", images.std)):
        pixels = [round(255 * x, 3) for x in values]
        actual = cfg.MODEL[key]
        if len(actual) != len(pixels) or not np.allclose(actual, pixels, atol=1):
            differing.append(f"MODEL.{key} {pixels}")
    if RESNET.fullmatch(name or "") and cfg.MODEL.RESNETS.STRIDE_IN_1X1:
        differing.append("MODEL.RESNETS.STRIDE_IN_1X1 False")
    if differing:
        logging.getLogger(__name__).warning(
            "MODEL.WEIGHTS %s were trained with other settings than this config has: set %s",
            path,
            ", ".join(differing),
        )


def _name_of_backbone(cfg: CfgNode) -> str | None:
    """Name of the backbone's weights in torchvision; None for a backbone of another kind."""
    resnets = cfg.MODEL.RESNETS
    if "resnet" in cfg.MODEL.BACKBONE.NAME:
        if (resnets.NUM_GROUPS, resnets.WIDTH_PER_GROUP) != (1, 64):
            return None
        return f"resnet{cfg.MODEL.RESNETS.DEPTH}"
    is_torchvision = cfg.MODEL.BACKBONE.NAME == "build_torchvision_fpn_backbone"
    return cfg.MODEL.TORCHVISION.NAME if is_torchvision else None


def _weights(name: str) -> WeightsEnum | None:
    """ImageNet weights of a classification model of torchvision; None if there are none."""
    if name not in list_models(module=torchvision.models):
        return None
    return getattr(get_model_weights(name), IMAGENET, None)


def _download(path: str, weights: WeightsEnum) -> dict[str, Tensor]:
    try:
        return weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: hash mismatch
        raise AIDError(
            f"{path} cannot be downloaded from {weights.url} ({error}): connect to the network, "
            f"or put the file into {os.path.join(torch.hub.get_dir(), 'checkpoints')}, or set "
            "MODEL.WEIGHTS to a file you have"
        ) from error


PathManager.register_handler(TorchvisionHandler())
