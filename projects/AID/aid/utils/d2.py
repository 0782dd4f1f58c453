"""Every use of Detectron2's private names, which may change without notice."""

from detectron2.data.build import _train_loader_from_config as train_loader_from_config
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.structures import Boxes, Instances
from torch import Tensor

__all__ = [
    "decode_multi_level_predictions",
    "match_fcos_points",
    "train_loader_from_config",
    "transpose_dense_predictions",
]


def transpose_dense_predictions(
    detector: DenseDetector, predictions: tuple[list[Tensor], ...], dims: list[int]
) -> list[list[Tensor]]:
    """Output of a dense head as (N, H * W * A, dim) instead of (N, A * dim, H, W), by level."""
    return detector._transpose_dense_predictions(predictions, dims)


def match_fcos_points(detector: FCOS, boxes: Boxes, points: list[Boxes]) -> Tensor:
    """Quality (G, R) of each point for each box; 0 where FCOS does not assign it."""
    return detector._match_anchors(boxes, points)


def decode_multi_level_predictions(detector: DenseDetector, *args) -> Instances:
    """Detections above a score, the best of each level, before non-maximum suppression."""
    return detector._decode_multi_level_predictions(*args)
