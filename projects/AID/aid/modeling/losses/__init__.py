"""Distillation losses, one file each. Importing the package registers them."""

from .attention import AttentionGuidedLoss
from .base import DISTILLATION_LOSS_REGISTRY, Context, build_distillation_losses
from .non_local import NonLocalLoss

__all__ = [
    "DISTILLATION_LOSS_REGISTRY",
    "AttentionGuidedLoss",
    "Context",
    "NonLocalLoss",
    "build_distillation_losses",
]
