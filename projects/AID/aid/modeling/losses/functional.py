"""Functions that several distillation losses share.

Statistics over the positions of a map leave out positions of weight 0. A softmax or a mean over
positions would otherwise let a region in which the teacher is not trusted influence all others.
Weights that are constant and not 0 change nothing.

Shape letters: N images, C channels, (H, W) size of a level, P positions, S samples.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..families.base import mean_by

__all__ = [
    "edge_divergences",
    "finite_only",
    "mean_over_images",
    "spatial_log_softmax",
    "spatial_mean",
    "residual_norm",
    "softmax_divergences",
    "standardized",
]

# Added to variances: a channel whose deviation is far below 1e-3 counts as constant.
EPSILON = 1e-6


def spatial_log_softmax(logits: Tensor, weights: Tensor) -> Tensor:
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


def spatial_mean(x: Tensor, weights: Tensor) -> Tensor:
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
    x = x - spatial_mean(x, weights)
    return x * (spatial_mean(x.square(), weights) + EPSILON).rsqrt()


def residual_norm(
    target: Tensor,
    weights: tuple[Tensor, ...],
    bias: Tensor | None,
    *products: tuple[Tensor | None, Tensor],
) -> Tensor:
    """|| w * (target - bias - sum of A_k X_k) || of each image, where w is the product of weights.

    A distillation loss spends its time on passes over maps of the finest level rather than on
    arithmetic. Written out in torch's operators, weighting, norm and their derivatives make a new
    map each. Here they all work on one, which ends as the derivative of the norm by the residual.

    Args:
        target: (N, C, P), without gradient.
        weights: broadcastable to (N, C, P), without gradient.
        bias: (N, C) or (1, C); None for 0.
        products: pairs of A (N, C, D_k), or None for the identity, and X (N, D_k, P).

    Returns:
        (N,); the gradient at 0 is 0.
    """
    flat = [tensor for pair in products for tensor in pair]
    return _ResidualNorm.apply(target, weights, bias, *flat)


class _ResidualNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        target: Tensor,
        weights: tuple[Tensor, ...],
        bias: Tensor | None,
        *products: Tensor | None,
    ):
        residual = target.clone() if bias is None else target - bias[..., None]
        for matrix, x in zip(products[::2], products[1::2], strict=True):
            if matrix is None:
                residual.sub_(x)
            else:
                residual.baddbmm_(matrix, x, alpha=-1)
        for weight in weights:
            residual.mul_(weight)
        norm = torch.linalg.vector_norm(residual.flatten(1), dim=1)
        for weight in weights:
            residual.mul_(weight)
        residual.div_(norm.where(norm > 0, 1.0)[:, None, None])
        ctx.save_for_backward(residual, *products)
        ctx.num_biases = None if bias is None else len(bias)
        return norm

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        unit, *products = ctx.saved_tensors
        factor = -gradient[:, None, None]
        _, _, needs_bias, *needs = ctx.needs_input_grad
        bias = None
        if needs_bias:
            bias = (factor * unit.sum(dim=2, keepdim=True)).squeeze(2)
            if ctx.num_biases == 1:
                bias = bias.sum(dim=0, keepdim=True)
        found = []
        for k, (matrix, x) in enumerate(zip(products[::2], products[1::2], strict=True)):
            found.append(factor * (unit @ x.transpose(1, 2)) if needs[2 * k] else None)
            gradient = None
            if needs[2 * k + 1]:
                gradient = (
                    factor * unit if matrix is None else (factor * matrix).transpose(1, 2) @ unit
                )
            found.append(gradient)
        return None, None, bias, *found


def softmax_divergences(ours: Tensor, theirs: Tensor) -> Tensor:
    """KL(softmax(theirs) || softmax(ours)) over the last dimension of logits."""
    ours, theirs = (x.log_softmax(dim=-1) for x in (ours, theirs))
    return F.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=-1)


def finite_only(theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Mask (S,) of the finite predictions (S, ...), and the predictions with 0 for the others."""
    finite = theirs.flatten(1).isfinite().all(dim=1)
    return finite, torch.where(finite.view(-1, *[1] * (theirs.dim() - 1)), theirs, 0.0)


def edge_divergences(ours: Tensor, theirs: Tensor) -> Tensor:
    """KL(softmax(theirs) || softmax(ours)) of logits (S, 4, bins), the mean over the edges (S,).

    0 where the teacher's answer is not finite.
    """
    finite, theirs = finite_only(theirs)
    return torch.where(finite, softmax_divergences(ours, theirs).mean(dim=1), 0.0)


def mean_over_images(
    losses: Tensor, image: Tensor, num_images: int, here: Tensor | None = None
) -> Tensor:
    """The mean of the samples (S,) of each image, averaged over all images.

    Args:
        losses, image: (S,).
        num_images: all of them.
        here: (S,), bool, the samples that count; all by default.
    """
    if here is not None:  # to select them would wait for the device
        image = torch.where(here, image, num_images)
        losses = torch.where(here, losses, 0.0)
    return mean_by(image, losses, num_images)[0].mean()
