"""Distillation losses, one file each. Importing the package registers them."""

from .attention import AttentionGuidedLoss
from .base import DISTILLATION_LOSS_REGISTRY, Context, Responses, build_distillation_losses
from .non_local import NonLocalLoss
from .response import BoxResponseLoss

__all__ = [
    "DISTILLATION_LOSS_REGISTRY",
    "AttentionGuidedLoss",
    "BoxResponseLoss",
    "Context",
    "NonLocalLoss",
    "Responses",
    "build_distillation_losses",
]
