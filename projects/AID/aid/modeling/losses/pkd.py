"""Pearson correlation distillation, PKD (Cao et al., NeurIPS 2022, arXiv 2207.02039).

Shape letters: N images, C channels, (H, W) size of a level.
"""

from torch import Tensor

from .base import DISTILLATION_LOSS_REGISTRY
from .positions import position_mean
from .single_term import SingleTermLoss

__all__ = ["PKDLoss"]

# Added to variances: a channel whose deviation is far below 1e-3 counts as constant.
EPSILON = 1e-6


@DISTILLATION_LOSS_REGISTRY.register()
class PKDLoss(SingleTermLoss):
    """Half the mean squared error of normalised features, which is 1 - Pearson's correlation r:

        1/2 mean over C, H, W of (norm(F_t) - norm(F_s))^2 = mean over C of  1 - r
        norm(F) = (F - mean over H, W) / deviation over H, W

    F_s is the student's after the adapter. With a weight map w it is mean(w) times the weighted
    correlation's 1 - r: all means and deviations count a position by its weight.

    Statistics are those of each image. The authors' code takes them over the images of a GPU, so
    that the loss of an image would depend on which others are there, and on the number of
    processes. It is free of the features' size, and does not read DISTILLATION.SCALE.
    """

    term = "loss_distill_pkd"
    key = "PKD"

    def level(self, name: str, student: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
        """See :class:`SingleTermLoss`."""
        difference = _normalized(teacher, weights) - _normalized(student, weights)
        squared = difference.square().mean(dim=1, keepdim=True)
        return (weights * squared).mean() / 2


def _normalized(x: Tensor, weights: Tensor) -> Tensor:
    """Mean 0 and variance 1 of each image and channel; 0 where a channel is constant."""
    x = x - position_mean(x, weights)
    return x * (position_mean(x.square(), weights) + EPSILON).rsqrt()
