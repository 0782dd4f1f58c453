"""Checkpointers, and torchvision's ImageNet weights by path (``torchvision://...``)."""

from . import torchvision_weights
from .finite import NonFiniteError, non_finite
from .plain_pickle import check_pickle
from .reading import (
    SafeCheckpointer,
    check_kinds,
    clear_load_errors,
    last_checkpoint,
    load_file,
)
from .stored_classes import check_stored_classes
from .strict_checkpointer import StrictCheckpointer
from .student_checkpointer import StudentCheckpointer

__all__ = [
    "check_stored_classes",
    "NonFiniteError",
    "SafeCheckpointer",
    "StrictCheckpointer",
    "StudentCheckpointer",
    "check_kinds",
    "check_pickle",
    "clear_load_errors",
    "last_checkpoint",
    "load_file",
    "non_finite",
    "torchvision_weights",
]
