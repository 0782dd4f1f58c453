"""Detectors that Detectron2 lacks, or has for LazyConfig only."""

from .fcos import FCOS
from .gfl import GFL
from .torchvision_backbone import TorchvisionBackbone

__all__ = ["FCOS", "GFL", "TorchvisionBackbone"]
