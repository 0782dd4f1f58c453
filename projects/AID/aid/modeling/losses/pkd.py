"""Pearson correlation distillation, PKD (Cao et al., NeurIPS 2022, arXiv 2207.02039).

Shape letters: N images, C channels, (H, W) size of a level.
"""

from torch import Tensor

from .base import DISTILLATION_LOSS_REGISTRY, Context, SingleTermLoss
from .functional import standardized

__all__ = ["PKDLoss"]


@DISTILLATION_LOSS_REGISTRY.register()
class PKDLoss(SingleTermLoss):
    """Half the mean squared error of standardized features, which is 1 - Pearson's correlation r:

        1/2 mean over C, H, W of (norm(F_t) - norm(F_s))^2 = mean over C of  1 - r
        norm(F) = (F - mean over H, W) / deviation over H, W

    F_s is the student's behind the adapter: where that is the identity, this is
    :class:`~aid.modeling.losses.FitNetLoss` on standardized features. With a weight map w it is
    mean(w) (1 - r), with r the weighted correlation: all means and deviations are weighted by w.

    Statistics are those of each image. The authors' code has those of all images of a GPU, with
    which the loss of an image depends on the other images and on the number of processes. The loss
    does not depend on the scale of the features, and does not read DISTILLATION.SCALE.
    """

    term = "loss_distill_pkd"
    key = "PKD"
    can_standardize = False  # always does, behind the adapter

    def adapt(self, level: str, student: Tensor) -> Tensor:
        """Student's features (N, C_s, H, W) behind the adapter: (N, C_t, H, W)."""
        return self.adapters[level](student)

    def compared(
        self, name: str, student: Tensor, teacher: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        return standardized(self.adapt(name, student), weights), standardized(teacher, weights)

    def level(
        self, name: str, student: Tensor, teacher: Tensor, weights: Tensor, context: Context
    ) -> tuple[Tensor]:
        student, teacher = self.compared(name, student, teacher, weights)
        squared = (teacher - student).square().mean(dim=1, keepdim=True)
        return ((weights * squared).mean() / 2,)
