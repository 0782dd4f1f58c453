"""Boxes on the grid of a feature map, and the overlap of pairs of boxes.

Shape letters: G boxes of an image, S pairs of boxes, (H, W) size of a level.
"""

import torch
from torch import Tensor

__all__ = ["rasterize_max", "elementwise_box_giou", "covered_cells"]


def covered_cells(boxes: Tensor, size: tuple[int, int], stride: int) -> tuple[Tensor, Tensor]:
    """Rows and columns that boxes cover: at least one, however small or far outside a box is.

    Args:
        boxes: (G, 4), XYXY in pixels.
        size: (H, W).
        stride: pixels per cell.

    Returns:
        bool (G, H) and (G, W); a box covers the cells in its rows and its columns.
    """
    rows = _covered(boxes[:, 1], boxes[:, 3], size[0], stride)
    columns = _covered(boxes[:, 0], boxes[:, 2], size[1], stride)
    return rows, columns


def rasterize_max(values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Maximum of the values (G,) of the boxes that cover a cell, 0 where none does: (H, W).

    Args:
        values: above 0.
        rows, columns: of :func:`covered_cells`.
    """
    if not len(values):
        return values.new_zeros(rows.shape[1], columns.shape[1])
    return ((rows * values[:, None])[:, :, None] * columns[:, None, :]).amax(dim=0)


def _covered(low: Tensor, high: Tensor, num_cells: int, stride: int) -> Tensor:
    """Cells along one axis that the intervals (G,) cover: bool (G, num_cells)."""
    first = (low / stride).floor().clamp(0, num_cells - 1)
    last = torch.maximum((high / stride).ceil() - 1, first).clamp(max=num_cells - 1)
    cells = torch.arange(num_cells, device=low.device)
    return (cells >= first[:, None]) & (cells <= last[:, None])


# The least area to divide by, in square pixels.
EPSILON = 1e-7


def elementwise_box_giou(boxes: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
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
