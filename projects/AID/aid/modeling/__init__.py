"""Teacher, instance losses, weighting, distillation losses, and where they meet."""

from . import instance_loss, losses, weighting
from .fcos import FCOS
from .meta_arch import AIDFCOS, AIDGeneralizedRCNN, AIDRetinaNet
from .teacher import Teacher, build_teacher

__all__ = [
    "AIDFCOS",
    "AIDGeneralizedRCNN",
    "AIDRetinaNet",
    "FCOS",
    "Teacher",
    "build_teacher",
    "instance_loss",
    "losses",
    "weighting",
]
