"""The norm of what is left between two feature maps, with a gradient that is cheap to take.

Shape letters: N images, C channels, P positions.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["residual_norm"]


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
