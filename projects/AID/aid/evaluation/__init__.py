"""Evaluators for COCO's and KITTI's metrics."""

from .build import build_evaluator, check_evaluator
from .kitti_evaluation import KITTIEvaluator
from .kitti_files import as_dict, evaluate_folders, format_table
from .kitti_metric import kitti_average_precision

__all__ = [
    "KITTIEvaluator",
    "as_dict",
    "build_evaluator",
    "check_evaluator",
    "evaluate_folders",
    "format_table",
    "kitti_average_precision",
]
