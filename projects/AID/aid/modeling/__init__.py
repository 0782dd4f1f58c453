"""Instance losses, responses, teacher, weighting, distillation losses, and where they meet."""

from . import instance_loss, losses, responses, weighting
from .meta_arch import AIDGeneralizedRCNN, AIDRetinaNet
from .teacher import Teacher, build_teacher

__all__ = [
    "AIDGeneralizedRCNN",
    "AIDRetinaNet",
    "Teacher",
    "build_teacher",
    "instance_loss",
    "losses",
    "responses",
    "weighting",
]
