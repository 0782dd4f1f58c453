"""Statistics over the positions of a map, each of which counts by its weight.

A formula that compares positions, by a softmax or a mean over them, would let a place at which the
teacher is not believed reach all others through it. Taken like this, a position of weight 0 has no
part in the statistics, and equal weights change nothing.

Shape letters: N images, C channels, (H, W) size of a level.
"""

import torch
from torch import Tensor

__all__ = ["position_log_softmax", "position_mean", "strength"]


def strength(weights: Tensor) -> Tensor:
    """The mean weight (N,) of each image: what is left of weights that are all the same."""
    return weights.mean(dim=(1, 2, 3))


def position_log_softmax(logits: Tensor, weights: Tensor) -> Tensor:
    """log( w_i exp(x_i) / sum over positions of w_j exp(x_j) ); even where an image weighs nothing.

    Args:
        logits: (N, C, H, W).
        weights: (N, 1, H, W), at least 0.
    """
    # Not minus infinity, which leaves NaN where two of these are subtracted, or all are minus
    # infinity. Every logit is lost in its rounding.
    measure = weights.log().clamp(min=-1e30)
    return (logits + measure).flatten(2).log_softmax(dim=2).view_as(logits)


def position_mean(x: Tensor, weights: Tensor) -> Tensor:
    """sum w_i x_i / sum w_i over positions, 0 where an image weighs nothing: (N, C, 1, 1).

    Args:
        x: (N, C, H, W).
        weights: (N, 1, H, W), at least 0.
    """
    share = weights.flatten(2)
    total = share.sum(dim=2, keepdim=True)
    share = share / total.clamp(min=torch.finfo(total.dtype).tiny)
    return (x.flatten(2) @ share.transpose(1, 2))[..., None]
