"""Evaluators, chosen by evaluator_type in a dataset's metadata."""

from .build import build_evaluator, check_evaluator_type
from .kitti_evaluation import KITTIEvaluator, evaluate_folders
from .kitti_metric import kitti_average_precision

__all__ = [
    "KITTIEvaluator",
    "build_evaluator",
    "check_evaluator_type",
    "evaluate_folders",
    "kitti_average_precision",
]
