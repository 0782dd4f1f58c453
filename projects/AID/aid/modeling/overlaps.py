"""Overlaps of boxes, pair by pair."""

import torch
from torch import Tensor

__all__ = ["overlaps"]

# The least area to divide by, in square pixels.
EPSILON = 1e-7


def overlaps(boxes: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalized IoU (arXiv 1902.09630) of each box with its target.

    Detectron2's and torchvision's select or assert, which waits for the device; this does not.

    Args:
        boxes, targets: (S, 4), XYXY.

    Returns:
        (S,) and (S,).
    """
    size = (boxes[:, 2:] - boxes[:, :2]).unbind(dim=1)
    true_size = (targets[:, 2:] - targets[:, :2]).unbind(dim=1)
    top_left = torch.maximum(boxes[:, :2], targets[:, :2])
    bottom_right = torch.minimum(boxes[:, 2:], targets[:, 2:])
    shared = (bottom_right - top_left).clamp(min=0).unbind(dim=1)
    top_left = torch.minimum(boxes[:, :2], targets[:, :2])
    bottom_right = torch.maximum(boxes[:, 2:], targets[:, 2:])
    hull = (bottom_right - top_left).unbind(dim=1)

    shared, hull = shared[0] * shared[1], hull[0] * hull[1]
    union = size[0] * size[1] + true_size[0] * true_size[1] - shared
    iou = shared / union.clamp(min=EPSILON)
    return iou, iou - (hull - union) / hull.clamp(min=EPSILON)
