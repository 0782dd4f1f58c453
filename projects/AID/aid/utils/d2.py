"""Access to private names of Detectron2 and torch outside of subclasses, all in one place.

They may change without notice; ``tests/utils/test_d2.py`` lists those of the whole project.
"""

from detectron2.config import CfgNode
from detectron2.data.build import _train_loader_from_config as train_loader_from_config
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.structures import Boxes
from torch import Tensor, nn
from torch.multiprocessing import _prctl_pr_set_pdeathsig as end_with_parent

__all__ = [
    "decode_value",
    "end_with_parent",
    "match_fcos_points",
    "padding",
    "train_loader_from_config",
    "transpose_dense_predictions",
]


def transpose_dense_predictions(
    detector: DenseDetector, predictions: tuple[list[Tensor], ...], dims: list[int]
) -> list[list[Tensor]]:
    """Reshape the output of a dense head, per level, (N, A * dim, H, W) to (N, H * W * A, dim)."""
    return detector._transpose_dense_predictions(predictions, dims)


def match_fcos_points(detector: FCOS, boxes: Boxes, points: list[Boxes]) -> Tensor:
    """Compute the match quality (G, R) of boxes and points; 0 for pairs that FCOS excludes."""
    return detector._match_anchors(boxes, points)


def padding(backbone: nn.Module) -> tuple[int, int]:
    """Padding that a backbone requires: side of the square or 0, and divisibility of sides."""
    constraints = getattr(backbone, "padding_constraints", {})  # missing in v0.6
    divisibility = constraints.get("size_divisibility", backbone.size_divisibility)
    return constraints.get("square_size", 0), max(1, divisibility)


def decode_value(value: object) -> object:
    """Convert the text of a config value as merging does, such as "(1, 2)" to a tuple."""
    return CfgNode._decode_cfg_value(value)
