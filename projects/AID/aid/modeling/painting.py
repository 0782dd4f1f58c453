"""Boxes on the grid of a feature map.

Shape letters: G boxes of an image, (H, W) size of a level.
"""

import torch
from torch import Tensor

__all__ = ["highest", "touched_cells"]


def touched_cells(boxes: Tensor, size: tuple[int, int], stride: int) -> tuple[Tensor, Tensor]:
    """Rows and columns that boxes touch: at least one, however small or far outside a box is.

    Args:
        boxes: (G, 4), XYXY in pixels.
        size: (H, W).
        stride: pixels per cell.

    Returns:
        bool (G, H) and (G, W); a box touches the cells of its rows and its columns.
    """
    rows = _touched(boxes[:, 1], boxes[:, 3], size[0], stride)
    columns = _touched(boxes[:, 0], boxes[:, 2], size[1], stride)
    return rows, columns


def highest(values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The highest of the values (G,) of the boxes that touch a cell, 0 where none does: (H, W).

    Args:
        values: above 0.
        rows, columns: of :func:`touched_cells`.
    """
    if not len(values):
        return values.new_zeros(rows.shape[1], columns.shape[1])
    return ((rows * values[:, None])[:, :, None] * columns[:, None, :]).amax(dim=0)


def _touched(low: Tensor, high: Tensor, num_cells: int, stride: int) -> Tensor:
    """Cells along one axis that the intervals (G,) touch: bool (G, num_cells)."""
    first = (low / stride).floor().clamp(0, num_cells - 1)
    last = torch.maximum((high / stride).ceil() - 1, first).clamp(max=num_cells - 1)
    cells = torch.arange(num_cells, device=low.device)
    return (cells >= first[:, None]) & (cells <= last[:, None])
