"""Boxes as distributions of their distances from a cell.

Shape letters:

    S: cells    B: bins of a distribution, one per whole distance 0 ... reg_max, in cells
"""

import torch
from detectron2.modeling.box_regression import Box2BoxTransformLinear
from torch import Tensor

__all__ = ["IntegralTransform"]


class IntegralTransform(Box2BoxTransformLinear):
    """Detectron2's transform of distances to boxes, for distances that are expectations.

    What a head predicts, and ``apply_deltas`` takes, are 4 * B logits: of the distances of a cell's
    center from the left, upper, right and lower side, in cells (strides of the level).
    """

    def __init__(self, reg_max: int, anchor_scale: float):
        """
        Args:
            reg_max: the largest distance, in cells.
            anchor_scale: side of an anchor, in cells.
        """
        super().__init__(normalize_by_size=True)
        self.reg_max = reg_max
        self.anchor_scale = anchor_scale

    def distances(self, logits: Tensor) -> Tensor:
        """Expected distances (S, 4), in cells, of logits (S, 4 * B)."""
        probabilities = logits.float().unflatten(1, (4, self.reg_max + 1)).softmax(dim=2)
        bins = torch.arange(self.reg_max + 1, device=logits.device, dtype=torch.float32)
        return (probabilities * bins).sum(dim=2)

    def get_deltas(self, src_boxes: Tensor, target_boxes: Tensor) -> Tensor:
        """Distances (S, 4), in cells, of the centers of anchors from the sides of boxes (S, 4)."""
        return super().get_deltas(src_boxes, target_boxes) * self.anchor_scale

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """Boxes (S, 4) of logits (S, 4 * B) at anchors (S, 4)."""
        return super().apply_deltas(self.distances(deltas) / self.anchor_scale, boxes)
