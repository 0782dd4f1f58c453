"""Statistics over the positions of a map, without those at which nothing is to be imitated.

A formula that compares positions, by a softmax or a mean over them, would let a place at which the
teacher is not believed reach all others through it. A place of weight 0 has no part in these, and
weights that are all the same, but not 0, change nothing.

Shape letters: N images, C channels, (H, W) size of a level.
"""

import torch
from torch import Tensor

__all__ = ["position_log_softmax", "position_mean", "standardized"]

# Added to variances: a channel whose deviation is far below 1e-3 counts as constant.
EPSILON = 1e-6


def position_log_softmax(logits: Tensor, weights: Tensor) -> Tensor:
    """Log of the softmax over the positions whose weight is not 0, however small it is.

    Weights between are for the terms of a loss: in here they would cancel where a softmax is sharp.

    Args:
        logits: (N, C, H, W).
        weights: (N, 1, H, W), at least 0.

    Returns:
        (N, C, H, W), -1e30 at positions of weight 0; that of 1 / (H * W) throughout where an image
        weighs nothing.
    """
    # Minus infinity would leave NaN where two of these are subtracted, or where there is no other.
    left = logits.masked_fill(weights == 0, -1e30)
    return left.flatten(2).log_softmax(dim=2).view_as(logits)


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


def standardized(x: Tensor, weights: Tensor) -> Tensor:
    """Features of mean 0 and variance 1 in each image and channel, over the positions by weight.

    Args:
        x: (N, C, H, W).
        weights: (N, 1, H, W), at least 0.

    Returns:
        (N, C, H, W); 0 where a channel is constant.
    """
    x = x - position_mean(x, weights)
    return x * (position_mean(x.square(), weights) + EPSILON).rsqrt()
