"""Weighting rules, weight maps and mixing of teachers. Importing the package registers the rules.

Rules under study are in studies/rules.py of the repository.
"""

from .base import WEIGHTING_REGISTRY, Weighting, build_weighting
from .mixing import TeacherMixing
from .rules import ConstantWeighting, ExponentialWeighting
from .structures import ComponentWeights, TeacherStats, Weights

__all__ = [
    "WEIGHTING_REGISTRY",
    "ComponentWeights",
    "ConstantWeighting",
    "ExponentialWeighting",
    "TeacherMixing",
    "TeacherStats",
    "Weighting",
    "Weights",
    "build_weighting",
]
