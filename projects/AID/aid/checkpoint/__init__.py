"""Checkpoints of students, and torchvision's ImageNet weights as a path (``torchvision://...``)."""

from . import torchvision_weights
from .strict_checkpointer import StrictCheckpointer
from .student_checkpointer import StudentCheckpointer

__all__ = ["StrictCheckpointer", "StudentCheckpointer", "torchvision_weights"]
