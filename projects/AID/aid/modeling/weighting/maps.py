"""Weight maps, and means over regions and batches.

Shape letters: N images, G instances of the batch, L levels of the teacher's losses, (H, W) size of
a level.
"""

import torch
import torch.nn.functional as F
from detectron2.utils import comm
from torch import Tensor

from ..boxes import covered_cells, rasterize_max

__all__ = ["constant_map", "mean_with", "normalized", "rasterize_boxes"]


def constant_map(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Constant maps (N, 1, H, W) of the values (N,)."""
    return values[:, None, None, None].expand(-1, 1, *size)


def rasterize_boxes(
    boxes: list[Tensor],
    weights: Tensor,
    background: dict[str, Tensor],
    levels: dict[str, tuple[tuple[int, int], int]],
) -> dict[str, Tensor]:
    """Rasterize the weights of boxes, for each image and level.

    A cell has the weight of the smallest box that covers it, among boxes of equal size the smallest
    weight, and the background's weight if no box covers it. Every box covers at least one cell; see
    :func:`covered_cells`.

    Args:
        boxes: N tensors (G_n, 4), XYXY in pixels.
        weights: (G,), weights of the boxes, image after image.
        background: {level: (N,)}, weight outside of all boxes of each image.
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
            tops = [rasterize_max(r, *covered_cells(b, size, stride)) for b, r in per_image]
            top = torch.stack(tops)[:, None]
        rest = background[level][:, None, None, None]
        maps[level] = torch.where(top > 0, of_rank[top.long()], rest)
        finer = top, stride
    return {level: maps[level] for level in levels}


def _order(boxes: Tensor, weights: Tensor) -> Tensor:
    """Indices (G,) of the boxes by decreasing size; those of equal size by decreasing weight."""
    order = weights.argsort(descending=True, stable=True)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return order[area[order].argsort(descending=True, stable=True)]


def _coarser(finer: tuple[Tensor, int] | None, size: tuple[int, int], stride: int) -> Tensor | None:
    """Top ranks of a level from those of a finer level; None if the strides do not divide.

    A box covers a cell if and only if it covers one of the finer cells within.
    """
    if finer is None or stride % finer[1]:
        return None
    top = F.max_pool2d(finer[0], stride // finer[1], ceil_mode=True)
    return top if tuple(top.shape[-2:]) == size else None


def mean_with(rest: Tensor, loss: Tensor, share: Tensor, image: Tensor) -> Tensor:
    """Mean loss of each image and level over its instances, by ``share``, and the background.

    Losses that are not finite are left out.

    Args:
        rest: (N, L), loss of the background, which has weight 1 in the mean.
        loss, image: (G,), losses of the instances, and their images.
        share: (G, L), weights of the instances in the mean.

    Returns:
        (N, L), NaN for an image and level without a finite loss.
    """
    loss = loss[:, None]
    share = torch.where(loss.isfinite(), share, 0.0)
    # Background loss plus mean excess: the mean of equal losses has no rounding error.
    base = torch.where(rest.isfinite(), rest, 0.0)
    excess = torch.where(share > 0, share * (loss - base[image]), 0.0)
    total = torch.zeros_like(base).index_add(0, image, excess)
    return base + total / rest.isfinite().to(rest.dtype).index_add(0, image, share)


def normalized(x: Tensor) -> Tensor:
    """Divide weights by the mean of the teachers' sum over the batches of all processes.

    Args:
        x: (T, ...), weights of T teachers.
    """
    total = torch.stack([x.sum(), x.new_full((), x[0].numel())])
    if comm.get_world_size() > 1:
        torch.distributed.all_reduce(total)
    # With the lower bound, weights that are all 0 remain 0.
    return x / (total[0] / total[1].clamp(min=1)).clamp(min=1e-6)
