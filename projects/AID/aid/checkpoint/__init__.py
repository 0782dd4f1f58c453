"""Checkpoints of students, and torchvision's ImageNet weights as a path (``torchvision://...``)."""

from . import torchvision_weights
from .student_checkpointer import StudentCheckpointer

__all__ = ["StudentCheckpointer", "torchvision_weights"]
