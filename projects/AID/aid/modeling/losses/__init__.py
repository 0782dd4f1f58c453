"""Distillation losses, one file each. Importing the package registers them."""

from .attention import AttentionGuidedLoss
from .base import DISTILLATION_LOSS_REGISTRY, Context, DistillationLoss, FeatureLoss
from .build import build_distillation_losses
from .crosskd import CrossKDLoss
from .cwd import CWDLoss
from .fgd import FGDLoss
from .fitnet import FitNetLoss
from .localisation import LocalisationLoss
from .mgd import MGDLoss
from .non_local import NonLocalLoss
from .pkd import PKDLoss
from .response import ResponseLoss

__all__ = [
    "DISTILLATION_LOSS_REGISTRY",
    "AttentionGuidedLoss",
    "CWDLoss",
    "Context",
    "DistillationLoss",
    "FeatureLoss",
    "CrossKDLoss",
    "FGDLoss",
    "FitNetLoss",
    "LocalisationLoss",
    "MGDLoss",
    "NonLocalLoss",
    "PKDLoss",
    "ResponseLoss",
    "build_distillation_losses",
]
