"""Building of detectors from configs, with clear errors."""

from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from ..config import clear_value_errors

__all__ = ["build_detector"]


def build_detector(cfg: CfgNode) -> nn.Module:
    """Build a detector with Detectron2's ``build_model``.

    Raises:
        AIDError: Detectron2 cannot use a value of the config.
    """
    with clear_value_errors(cfg):
        return build_model(cfg)
