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
    local_file,
    of_other_shapes,
)
from .stored_classes import check_stored_classes
from .strict_checkpointer import StrictCheckpointer
from .student_checkpointer import StudentCheckpointer
from .torchvision_weights import check_torchvision_weights

__all__ = [
    "check_stored_classes",
    "NonFiniteError",
    "SafeCheckpointer",
    "StrictCheckpointer",
    "StudentCheckpointer",
    "check_kinds",
    "check_pickle",
    "check_torchvision_weights",
    "clear_load_errors",
    "last_checkpoint",
    "load_file",
    "local_file",
    "of_other_shapes",
    "non_finite",
    "torchvision_weights",
]
