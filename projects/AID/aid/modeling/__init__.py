"""Detector families, teachers, weighting rules, distillation losses and students."""

from . import detectors, families, losses, weighting
from .detectors import FCOS, GFL
from .distiller import Distiller
from .feature_teacher import FeatureTeacher, load_feature_teacher
from .lazy import build_distilled, distiller
from .meta_arch import AIDFCOS, AIDGFL, AIDGeneralizedRCNN, AIDRetinaNet
from .teacher import Teacher, build_teacher, load_teacher, map_classes

__all__ = [
    "AIDFCOS",
    "AIDGFL",
    "AIDGeneralizedRCNN",
    "AIDRetinaNet",
    "Distiller",
    "FCOS",
    "FeatureTeacher",
    "GFL",
    "Teacher",
    "build_distilled",
    "build_teacher",
    "detectors",
    "distiller",
    "families",
    "load_feature_teacher",
    "load_teacher",
    "losses",
    "map_classes",
    "weighting",
]
