"""FPN backbones from torchvision's classification models: MobileNet, EfficientNet, RegNet etc."""

import re
from collections.abc import Iterator
from functools import partial

import torch
import torchvision
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from ...utils.errors import AIDError
from ...utils.suggestions import did_you_mean

__all__ = ["TorchvisionBackbone", "build_torchvision_fpn_backbone"]

# Strides of the features, which are named as in Detectron2's ResNet.
STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
NORMS = ("BN", "FrozenBN", "SyncBN")
# Side in pixels of the image on which strides are measured, a multiple of all of them.
PROBE = 128


class TorchvisionBackbone(Backbone):
    """Classification model of torchvision without its classifier.

    A feature is the output of the last block of its stride. Blocks are the largest submodules that
    do not contain features of several strides. Parameters keep torchvision's names.
    """

    def __init__(
        self, name: str, out_features: list[str], norm: str = "FrozenBN", freeze_at: int = 2
    ):
        """
        Args:
            name: name of a classification model in ``torchvision.models``.
            out_features: features to compute, from "res2" to "res5".
            norm: "BN", "FrozenBN" or "SyncBN", which replaces the model's batch norms.
            freeze_at: number of frozen stages, as in a ResNet: 1 freezes the blocks of stride 2,
                2 also those of stride 4, etc.

        Raises:
            AIDError: a value is unknown, or the model has no feature of a stride.
        """
        super().__init__()
        if norm not in NORMS:
            raise AIDError(
                f"MODEL.TORCHVISION.NORM: {norm!r} is unknown, choose {', '.join(NORMS)}"
            )
        if unknown := [x for x in out_features if x not in STRIDES]:
            raise AIDError(
                f"MODEL.FPN.IN_FEATURES: {', '.join(unknown)}: torchvision's models have the "
                f"features {', '.join(STRIDES)}"
            )
        model = _build_model(name)
        blocks = list(_blocks(model))
        last = {stride: (path, channels) for path, stride, channels in blocks}
        if missing := [str(STRIDES[x]) for x in out_features if STRIDES[x] not in last]:
            raise AIDError(
                f"MODEL.TORCHVISION.NAME: {name} has no features of stride {', '.join(missing)}: "
                "choose a convolutional model, such as mobilenet_v3_large"
            )
        if norm == "SyncBN":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        elif norm == "FrozenBN":
            model = FrozenBatchNorm2d.convert_frozen_batchnorm(model)
        for path, stride, _ in blocks:
            if freeze_at > 0 and stride <= 2**freeze_at:  # a VGG begins at stride 1
                block = model.get_submodule(path).requires_grad_(False)
                model.set_submodule(path, FrozenBatchNorm2d.convert_frozen_batchnorm(block))
        self.body = create_feature_extractor(
            model,
            {last[STRIDES[x]][0]: x for x in out_features},
            tracer_kwargs={"leaf_modules": [FrozenBatchNorm2d]},
        )
        self._shapes = {
            x: ShapeSpec(channels=last[STRIDES[x]][1], stride=STRIDES[x]) for x in out_features
        }

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Features {name: (N, C, H, W)} of images (N, 3, H, W)."""
        return self.body(images)

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self._shapes


@BACKBONE_REGISTRY.register()
def build_torchvision_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build an FPN on a classification model of torchvision.

    With "res2" in MODEL.FPN.IN_FEATURES the levels are those of an R-CNN, p2 to p6, otherwise those
    of a dense detector, p3 to p7, with p6 computed from p5 as in FCOS.

    Args:
        cfg: config with MODEL.TORCHVISION, MODEL.FPN and MODEL.BACKBONE.FREEZE_AT.
        input_shape: shape of the images.

    Raises:
        AIDError: see :class:`TorchvisionBackbone`; or the images do not have three channels.
    """
    if input_shape.channels != 3:
        raise AIDError(
            f"MODEL.TORCHVISION.NAME: torchvision's models need images of 3 channels, "
            f"MODEL.PIXEL_MEAN has {input_shape.channels}"
        )
    levels, channels = cfg.MODEL.FPN.IN_FEATURES, cfg.MODEL.FPN.OUT_CHANNELS
    return FPN(
        bottom_up=TorchvisionBackbone(
            cfg.MODEL.TORCHVISION.NAME,
            levels,
            cfg.MODEL.TORCHVISION.NORM,
            cfg.MODEL.BACKBONE.FREEZE_AT,
        ),
        in_features=levels,
        out_channels=channels,
        norm=cfg.MODEL.FPN.NORM,
        top_block=(
            LastLevelMaxPool()
            if "res2" in levels
            else LastLevelP6P7(channels, channels, in_feature="p5")
        ),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


def _build_model(name: str) -> nn.Module:
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise AIDError(
            f"MODEL.TORCHVISION.NAME: {name!r} is unknown{did_you_mean(name, known)}, choose one "
            f"of {', '.join(known)}"
        )
    if re.fullmatch(r"resnet\d+", name):
        raise AIDError(
            f"MODEL.TORCHVISION.NAME: {name}: Detectron2 has ResNets of its own; set "
            "MODEL.BACKBONE.NAME as in configs/KITTI, MODEL.RESNETS.DEPTH, and MODEL.WEIGHTS "
            f"torchvision://{name}"
        )
    try:
        model = torchvision.models.get_model(name, weights=None)
    except ImportError as error:  # models that need SciPy
        raise AIDError(f"MODEL.TORCHVISION.NAME: {name} cannot be built: {error}") from error
    if hasattr(model, "transform_input"):
        model.transform_input = True  # as with weights: converts images for GoogLeNet's
    return model


def _blocks(model: nn.Module) -> Iterator[tuple[str, int, int]]:
    """Path, stride and channels of each block of a model, in order of execution."""
    shapes: dict[str, tuple[int, int]] = {}

    def record(path: str, module: nn.Module, inputs: tuple, output: object) -> None:
        if not isinstance(output, Tensor) or output.dim() != 4:
            return
        _, channels, height, width = output.shape
        if height == width and PROBE % height == 0:
            shapes[path] = PROBE // height, channels

    hooks = [x.register_forward_hook(partial(record, path)) for path, x in model.named_modules()]
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(2, 3, PROBE, PROBE))
    except (AssertionError, RuntimeError, ValueError):
        return  # a model for images of one size
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    yield from _split(model, "", 1, shapes)


def _split(
    module: nn.Module, prefix: str, stride: int, shapes: dict[str, tuple[int, int]]
) -> Iterator[tuple[str, int, int]]:
    """Blocks within a module that is applied to a map of the given stride."""
    for name, child in module.named_children():
        path = prefix + name
        if path not in shapes:
            continue
        own_stride, channels = shapes[path]
        if own_stride > 2 * stride and any(child.children()):
            yield from _split(child, f"{path}.", stride, shapes)
        else:
            yield path, own_stride, channels
        stride = own_stride
