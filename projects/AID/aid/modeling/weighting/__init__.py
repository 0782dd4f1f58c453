"""How much to believe the teacher, and where: one rule per file. Importing registers them.

Rules under study are in studies/rules.py of the repository.
"""

from .base import WEIGHTING_REGISTRY, Weighting, build_weighting
from .classes import ClassWeighting
from .constant import ConstantWeighting
from .exponential import ExponentialWeighting
from .relative import RelativeWeighting
from .sharing import Sharing
from .structures import Evidence, PartWeights, Weights

__all__ = [
    "WEIGHTING_REGISTRY",
    "ClassWeighting",
    "ConstantWeighting",
    "Evidence",
    "ExponentialWeighting",
    "PartWeights",
    "RelativeWeighting",
    "Sharing",
    "Weighting",
    "Weights",
    "build_weighting",
]
