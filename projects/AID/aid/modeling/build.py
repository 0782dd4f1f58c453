"""Building of detectors from configs, with clear errors."""

import logging

from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from torch import nn

from ..config import clear_value_errors

__all__ = ["build_detector", "warn_of_frozen_norms"]


def build_detector(cfg: CfgNode) -> nn.Module:
    """Build a detector with Detectron2's ``build_model``.

    Raises:
        AIDError: Detectron2 cannot use a value of the config.
    """
    with clear_value_errors(cfg):
        return build_model(cfg)


def warn_of_frozen_norms(cfg: CfgNode, detector: nn.Module) -> None:
    """Warn if a training starts from random weights with frozen batch norm, which diverges.

    Args:
        cfg: config of the detector.
        detector: as it was built.
    """
    frozen = any(isinstance(x, FrozenBatchNorm2d) for x in detector.modules())
    if frozen and not cfg.MODEL.WEIGHTS:
        of = "RESNETS" if "resnet" in cfg.MODEL.BACKBONE.NAME else "TORCHVISION"
        logging.getLogger(__name__).warning(
            "MODEL.WEIGHTS is empty, but batch norm is frozen, without which random weights "
            "diverge: set MODEL.WEIGHTS, or MODEL.%s.NORM BN and MODEL.BACKBONE.FREEZE_AT 0",
            of,
        )
