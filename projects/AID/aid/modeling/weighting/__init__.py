"""Weighting rules, weight maps and mixing of teachers. Importing the package registers the rules.

Rules under study are in studies/rules.py of the repository.
"""

from .base import WEIGHTING_REGISTRY, Weighting, build_weighting
from .mixing import TeacherMixing
from .rules import ClassWeighting, ConstantWeighting, ExponentialWeighting, RelativeWeighting
from .structures import ComponentWeights, TeacherStats, Weights

__all__ = [
    "WEIGHTING_REGISTRY",
    "ClassWeighting",
    "ConstantWeighting",
    "TeacherStats",
    "ExponentialWeighting",
    "ComponentWeights",
    "RelativeWeighting",
    "TeacherMixing",
    "Weighting",
    "Weights",
    "build_weighting",
]
