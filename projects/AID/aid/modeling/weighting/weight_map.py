"""Weights of instances painted onto feature maps."""

import torch
from torch import Tensor

__all__ = ["paint_boxes"]


def paint_boxes(
    boxes: list[Tensor], weights: Tensor, background: Tensor, size: tuple[int, int], stride: int
) -> Tensor:
    """One weight map per image of one level.

    A cell takes the weight of the smallest box that touches it, of the smaller weight if boxes of
    one size compete, and the background's weight if none does. A box touches at least one cell,
    however small or far outside the image it is.

    Args:
        boxes: for each of N images (G_n, 4), XYXY in pixels.
        weights: (G,), the boxes' weights, image after image.
        background: (N,), the weight of the rest of each image.
        size: height H and width W of the level.
        stride: pixels per cell.

    Returns:
        (N, 1, H, W)
    """
    height, width = size
    painted = []
    per_image = zip(boxes, weights.split([len(b) for b in boxes]), background, strict=True)
    for box, weight, rest in per_image:
        # The smallest box is last, and among boxes of one size the smallest weight.
        order = weight.argsort(descending=True, stable=True)
        area = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
        order = order[area[order].argsort(descending=True, stable=True)]
        columns = _touched(box[order, 0], box[order, 2], width, stride)
        rows = _touched(box[order, 1], box[order, 3], height, stride)
        rank = torch.arange(1, len(box) + 1, device=box.device)
        covered = (rows[:, :, None] & columns[:, None, :]) * rank[:, None, None]
        top = covered.amax(dim=0) if len(box) else covered.new_zeros(size)
        painted.append(torch.cat([rest[None], weight[order]])[top])
    return torch.stack(painted)[:, None]


def _touched(low: Tensor, high: Tensor, num_cells: int, stride: int) -> Tensor:
    """Cells along one axis that the intervals (G,) touch: bool (G, num_cells)."""
    first = (low / stride).floor().clamp(0, num_cells - 1)
    last = torch.maximum((high / stride).ceil() - 1, first).clamp(max=num_cells - 1)
    cells = torch.arange(num_cells, device=low.device)
    return (cells >= first[:, None]) & (cells <= last[:, None])
