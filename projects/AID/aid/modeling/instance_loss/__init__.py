"""The teacher's own loss on every ground-truth instance: one file per detector family."""

from . import dense, fcos, gfl, two_stage
from .base import InstanceLosses, instance_losses, loss_levels
from .quality import DetectionQuality, detection_quality

__all__ = [
    "DetectionQuality",
    "InstanceLosses",
    "dense",
    "detection_quality",
    "fcos",
    "gfl",
    "instance_losses",
    "loss_levels",
    "two_stage",
]
