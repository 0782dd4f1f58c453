"""Detector families, one file each. Importing the package registers them."""

from . import fcos, gfl, given, retinanet, two_stage
from .base import (
    DetectionQuality,
    PerInstanceLosses,
    best_detections,
    detect,
    loss_levels,
    merge_classes,
    num_classes,
    num_classes_key,
    per_instance_losses,
)
from .cross_head import Branches, tap_branches
from .given import GivenDetections
from .ignore_regions import respect_ignore_regions
from .predictions import (
    PairedPredictions,
    PredictionBatch,
    PredictionRequest,
    Predictions,
    check_predictions,
    paired_predictions,
)

__all__ = [
    "Branches",
    "DetectionQuality",
    "GivenDetections",
    "PairedPredictions",
    "PerInstanceLosses",
    "PredictionBatch",
    "PredictionRequest",
    "Predictions",
    "best_detections",
    "check_predictions",
    "detect",
    "fcos",
    "gfl",
    "given",
    "loss_levels",
    "merge_classes",
    "num_classes",
    "num_classes_key",
    "paired_predictions",
    "per_instance_losses",
    "respect_ignore_regions",
    "retinanet",
    "tap_branches",
    "two_stage",
]
