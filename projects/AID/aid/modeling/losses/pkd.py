"""Pearson correlation distillation, PKD (Cao et al., NeurIPS 2022, arXiv 2207.02039).

Shape letters: N images, C channels, (H, W) size of a level.
"""

from torch import Tensor

from .base import DISTILLATION_LOSS_REGISTRY, Context, SingleTermLoss
from .functional import standardized

__all__ = ["PKDLoss"]


@DISTILLATION_LOSS_REGISTRY.register()
class PKDLoss(SingleTermLoss):
    """Half the mean squared error of normalised features, which is 1 - Pearson's correlation r:

        1/2 mean over C, H, W of (norm(F_t) - norm(F_s))^2 = mean over C of  1 - r
        norm(F) = (F - mean over H, W) / deviation over H, W

    F_s is the student's after the adapter: where that is the identity, this is
    :class:`~aid.modeling.losses.FitNetLoss` on standardised features. With a weight map w it is
    mean(w) times the weighted correlation's 1 - r: all means and deviations count a position by its
    weight.

    Statistics are those of each image. The authors' code takes them over the images of a GPU, so
    that the loss of an image would depend on which others are there, and on the number of
    processes. It is free of the features' size, and does not read DISTILLATION.SCALE.
    """

    term = "loss_distill_pkd"
    key = "PKD"
    can_standardize = False  # it always does, behind the adapter

    def adapt(self, level: str, student: Tensor) -> Tensor:
        """The student's features (N, C_s, H, W) with the teacher's channels."""
        return self.adapters[level](student)

    def compared(
        self, name: str, student: Tensor, teacher: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See :class:`FeatureLoss`."""
        return standardized(self.adapt(name, student), weights), standardized(teacher, weights)

    def level(
        self, name: str, student: Tensor, teacher: Tensor, weights: Tensor, context: Context
    ) -> tuple[Tensor]:
        """See :class:`FeatureLoss`."""
        student, teacher = self.compared(name, student, teacher, weights)
        squared = (teacher - student).square().mean(dim=1, keepdim=True)
        return ((weights * squared).mean() / 2,)
