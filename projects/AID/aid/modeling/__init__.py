"""Teacher, instance losses, weighting, distillation losses, and where they meet."""

from . import instance_loss, losses, weighting
from .gfl import GFL
from .meta_arch import AIDGFL, AIDGeneralizedRCNN, AIDRetinaNet
from .teacher import Teacher, build_teacher

__all__ = [
    "AIDGFL",
    "AIDGeneralizedRCNN",
    "AIDRetinaNet",
    "GFL",
    "Teacher",
    "build_teacher",
    "instance_loss",
    "losses",
    "weighting",
]
