"""Detectors that Detectron2 lacks, or has for LazyConfig alone."""

from .fcos import FCOS
from .gfl import GFL

__all__ = ["FCOS", "GFL"]
