"""The teacher's own loss on every ground-truth instance: one file per detector family."""

from . import dense, two_stage
from .base import InstanceLosses, instance_losses, loss_levels

__all__ = ["InstanceLosses", "dense", "instance_losses", "loss_levels", "two_stage"]
