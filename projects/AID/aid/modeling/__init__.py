"""Detector families, teachers, weighting rules, distillation losses and students."""

from . import detectors, families, losses, weighting
from .detectors import FCOS, GFL
from .distiller import Distiller
from .lazy import build_distilled, distilled, distiller, lesson
from .meta_arch import AIDFCOS, AIDGFL, AIDGeneralizedRCNN, AIDRetinaNet
from .teacher import Teacher, build_teacher, load_teacher, map_classes

__all__ = [
    "AIDFCOS",
    "AIDGFL",
    "AIDGeneralizedRCNN",
    "AIDRetinaNet",
    "Distiller",
    "FCOS",
    "GFL",
    "Teacher",
    "build_distilled",
    "build_teacher",
    "distilled",
    "lesson",
    "detectors",
    "distiller",
    "families",
    "load_teacher",
    "losses",
    "map_classes",
    "weighting",
]
