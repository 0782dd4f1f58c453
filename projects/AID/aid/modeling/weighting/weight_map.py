"""Weights of instances painted onto feature maps.

Shape letters: N images, G instances of the batch, (H, W) size of a level.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..painting import highest, touched_cells

__all__ = ["constant_map", "paint_boxes"]


def constant_map(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Constant maps (N, 1, H, W) of the values (N,)."""
    return values[:, None, None, None].expand(-1, 1, *size)


def paint_boxes(
    boxes: list[Tensor],
    weights: Tensor,
    background: dict[str, Tensor],
    levels: dict[str, tuple[tuple[int, int], int]],
) -> dict[str, Tensor]:
    """One weight map per image and level.

    A cell takes the weight of the smallest box that touches it, of the smaller weight if boxes of
    one size compete, and the background's weight if none does. A box touches at least one cell,
    however small or far outside the image it is.

    Args:
        boxes: for each of N images (G_n, 4), XYXY in pixels.
        weights: (G,), the boxes' weights, image after image.
        background: {level: (N,)}, the weight of the rest of each image.
        levels: {level: ((H, W), pixels per cell)}.

    Returns:
        {level: (N, 1, H, W)}
    """
    order = _order(torch.cat(boxes), weights)
    rank = torch.empty(len(order), device=order.device)
    rank[order] = torch.arange(1.0, len(order) + 1, device=order.device)
    of_rank = torch.cat([weights.new_zeros(1), weights[order]])
    ranks_per_image = rank.split([len(b) for b in boxes])
    maps, finer = {}, None
    for level, (size, stride) in sorted(levels.items(), key=lambda item: item[1][1]):
        top = _coarser(finer, size, stride)
        if top is None:
            per_image = zip(boxes, ranks_per_image, strict=True)
            tops = [highest(r, *touched_cells(b, size, stride)) for b, r in per_image]
            top = torch.stack(tops)[:, None]
        rest = background[level][:, None, None, None]
        maps[level] = torch.where(top > 0, of_rank[top.long()], rest)
        finer = top, stride
    return {level: maps[level] for level in levels}


def _order(boxes: Tensor, weights: Tensor) -> Tensor:
    """Indices (G,) of the boxes: the smallest is last, of one size the one of smallest weight."""
    order = weights.argsort(descending=True, stable=True)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return order[area[order].argsort(descending=True, stable=True)]


def _coarser(finer: tuple[Tensor, int] | None, size: tuple[int, int], stride: int) -> Tensor | None:
    """Top ranks of a level from those of a finer one; None if its cells are not made of theirs.

    A box touches a cell exactly if it touches one of the finer cells that the cell is made of.
    """
    if finer is None or stride % finer[1]:
        return None
    top = F.max_pool2d(finer[0], stride // finer[1], ceil_mode=True)
    return top if tuple(top.shape[-2:]) == size else None
