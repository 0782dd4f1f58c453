"""Functions that several distillation losses share.

Statistics over the positions of a map leave out positions of weight 0: features of a region that is
not to be imitated would otherwise influence all others through a softmax or a mean. Weights that
are constant and not 0 have no effect.

Shape letters: N images, C channels, (H, W) size of a level, P positions, S samples.
"""

from typing import Any

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

# Added to variances: a channel with a deviation far below 1e-3 counts as constant.
EPSILON = 1e-6


def spatial_log_softmax(logits: Tensor, weights: Tensor) -> Tensor:
    """Log-softmax over the positions whose weight is not 0.

    Other weights have no effect: they belong to the terms of a loss, and would cancel in a sharp
    softmax.

    Args:
        logits: (N, C, H, W).
        weights: (N, 1, H, W), at least 0.

    Returns:
        (N, C, H, W), -1e30 at positions of weight 0; log(1 / (H * W)) throughout an image whose
        weights are all 0.
    """
    # Minus infinity would give NaN in differences, and in an image whose weights are all 0.
    masked = logits.masked_fill(weights == 0, -1e30)
    return masked.flatten(2).log_softmax(dim=2).view_as(logits)


def spatial_mean(x: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean over positions, sum w_i x_i / sum w_i.

    Args:
        x: (N, C, H, W).
        weights: (N, 1, H, W), at least 0.

    Returns:
        (N, C, 1, 1); 0 for an image whose weights are all 0.
    """
    share = weights.flatten(2)
    total = share.sum(dim=2, keepdim=True)
    share = share / total.clamp(min=torch.finfo(total.dtype).tiny)
    return (x.flatten(2) @ share.transpose(1, 2))[..., None]


def standardized(x: Tensor, weights: Tensor) -> Tensor:
    """Standardize features to weighted mean 0 and variance 1 over the positions.

    Each image and channel has its own statistics.

    Args:
        x: (N, C, H, W).
        weights: (N, 1, H, W), at least 0.

    Returns:
        (N, C, H, W); 0 where a channel is constant. An image whose weights are all 0 has the
        statistics of all its positions.
    """
    # Such an image has no effect by its weights, but it has by a batch norm.
    weights = torch.where(weights.amax(dim=(2, 3), keepdim=True) > 0, weights, 1.0)
    x = x - spatial_mean(x, weights)
    return x * (spatial_mean(x.square(), weights) + EPSILON).rsqrt()


def residual_norm(
    target: Tensor,
    weights: tuple[Tensor, ...],
    bias: Tensor | None,
    *products: tuple[Tensor | None, Tensor],
) -> Tensor:
    """Norm || w * (target - bias - sum of A_k X_k) || of each image, w the product of ``weights``.

    The time of a distillation loss is that of passes over maps of the finest level, not of
    arithmetic. In torch's operators weighting, norm and their derivatives allocate a map each. Here
    they work in place on one, which ends as the derivative of the norm by the residual.

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
        ctx: Any,
        target: Tensor,
        weights: tuple[Tensor, ...],
        bias: Tensor | None,
        *products: Any,
    ) -> Tensor:
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
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        unit, *products = ctx.saved_tensors
        factor = -gradient[:, None, None]
        _, _, needs_bias, *needs = ctx.needs_input_grad
        bias = None
        if needs_bias:
            bias = (factor * unit.sum(dim=2, keepdim=True)).squeeze(2)
            if ctx.num_biases == 1:
                bias = bias.sum(dim=0, keepdim=True)
        gradients = []
        for k, (matrix, x) in enumerate(zip(products[::2], products[1::2], strict=True)):
            gradients.append(factor * (unit @ x.transpose(1, 2)) if needs[2 * k] else None)
            of_x = None
            if needs[2 * k + 1]:
                of_x = factor * unit if matrix is None else (factor * matrix).transpose(1, 2) @ unit
            gradients.append(of_x)
        return None, None, bias, *gradients


def softmax_divergences(student: Tensor, teacher: Tensor) -> Tensor:
    """Divergences KL(softmax(teacher) || softmax(student)) over the last dimension of logits."""
    student, teacher = (x.log_softmax(dim=-1) for x in (student, teacher))
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=-1)


def finite_only(predictions: Tensor) -> tuple[Tensor, Tensor]:
    """Mask (S,) of the finite predictions (S, ...), and the predictions with 0 for the others."""
    finite = predictions.flatten(1).isfinite().all(dim=1)
    return finite, torch.where(finite.view(-1, *[1] * (predictions.dim() - 1)), predictions, 0.0)


def edge_divergences(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over edges (S,) of KL(softmax(teacher) || softmax(student)) of logits (S, 4, bins).

    0 where the teacher's logits are not finite.
    """
    finite, teacher = finite_only(teacher)
    return torch.where(finite, softmax_divergences(student, teacher).mean(dim=1), 0.0)


def mean_over_images(losses: Tensor, image: Tensor, num_images: int, mask: Tensor | None) -> Tensor:
    """Mean of the losses of each image's samples, averaged over all images.

    Args:
        losses, image: (S,).
        num_images: number of images, with those that have no samples.
        mask: (S,), bool, the samples that count; None for all.
    """
    if mask is not None:  # selecting them would synchronize with the device
        image = torch.where(mask, image, num_images)
        losses = torch.where(mask, losses, 0.0)
    return mean_by(image, losses, num_images)[0].mean()
