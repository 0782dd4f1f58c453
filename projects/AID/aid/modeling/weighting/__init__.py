"""How much to believe the teacher, and where: one rule per file. Importing registers them."""

from .base import WEIGHTING_REGISTRY, Weighting, build_weighting
from .classes import ClassWeighting
from .constant import ConstantWeighting
from .exponential import ExponentialWeighting
from .quality import QualityWeighting
from .relative import RelativeWeighting
from .sharing import Sharing
from .structures import Evidence, PartWeights, Weights
from .student_aware import StudentAwareWeighting

__all__ = [
    "WEIGHTING_REGISTRY",
    "ClassWeighting",
    "ConstantWeighting",
    "Evidence",
    "ExponentialWeighting",
    "PartWeights",
    "QualityWeighting",
    "RelativeWeighting",
    "Sharing",
    "StudentAwareWeighting",
    "Weighting",
    "Weights",
    "build_weighting",
]
