"""Instance losses, responses, teacher, weighting, distillation losses, and where they meet."""

from . import instance_loss, losses, responses, weighting
from .fcos import FCOS
from .gfl import GFL
from .lazy import distilled, lesson
from .meta_arch import AIDFCOS, AIDGFL, AIDGeneralizedRCNN, AIDRetinaNet
from .teacher import Teacher, build_teacher, load_teacher

__all__ = [
    "AIDFCOS",
    "AIDGFL",
    "AIDGeneralizedRCNN",
    "AIDRetinaNet",
    "FCOS",
    "GFL",
    "Teacher",
    "build_teacher",
    "distilled",
    "instance_loss",
    "lesson",
    "load_teacher",
    "losses",
    "responses",
    "weighting",
]
