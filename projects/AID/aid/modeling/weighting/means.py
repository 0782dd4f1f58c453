"""Means over regions and over batches.

Shape letters: N images, G instances of the batch, L levels of the teacher's losses.
"""

import torch
from detectron2.utils import comm
from torch import Tensor

__all__ = ["mean_with", "normalized"]


def mean_with(rest: Tensor, loss: Tensor, share: Tensor, image: Tensor) -> Tensor:
    """Mean over the regions of each image: its instances, by ``share``, and the rest as one more.

    Losses that are not finite are left out.

    Args:
        rest: (N, L), the background's loss.
        loss, image: (G,).
        share: (G, L).

    Returns:
        (N, L), NaN for an image of which no loss is finite.
    """
    loss = loss[:, None]
    share = torch.where(loss.isfinite(), share, 0.0)
    # As the background's loss and what is above it: the mean of equal losses has no rounding.
    base = torch.where(rest.isfinite(), rest, 0.0)
    excess = torch.where(share > 0, share * (loss - base[image]), 0.0)
    total = torch.zeros_like(base).index_add(0, image, excess)
    return base + total / rest.isfinite().to(rest.dtype).index_add(0, image, share)


def normalized(x: Tensor, by: Tensor | None = None) -> Tensor:
    """``x`` by its mean over the whole batch, also where that is spread over processes.

    Args:
        x: of any shape.
        by: what to take the mean of instead.
    """
    by = x if by is None else by
    total = torch.stack([by.sum(), by.new_tensor(float(by.numel()))])
    if comm.get_world_size() > 1:
        torch.distributed.all_reduce(total)
    # A batch in which nothing is to be believed stays at 0.
    return x / (total[0] / total[1].clamp(min=1)).clamp(min=1e-6)
