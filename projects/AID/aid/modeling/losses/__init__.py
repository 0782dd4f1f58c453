"""Distillation losses, one file each. Importing the package registers them."""

from .attention import AttentionGuidedLoss
from .base import DISTILLATION_LOSS_REGISTRY, Context, build_distillation_losses
from .localisation import LocalisationLoss
from .non_local import NonLocalLoss
from .response import BoxResponseLoss, ResponseLoss

__all__ = [
    "DISTILLATION_LOSS_REGISTRY",
    "AttentionGuidedLoss",
    "BoxResponseLoss",
    "Context",
    "LocalisationLoss",
    "NonLocalLoss",
    "ResponseLoss",
    "build_distillation_losses",
]
