"""Localisation distillation: imitate how sure the teacher is of each edge of a box.

Shape letters: N images, S samples.
"""

from torch import Tensor

from ..families import PredictionRequest
from .base import DISTILLATION_LOSS_REGISTRY, Context, SoftTargetLoss
from .functional import edge_divergences, mean_over_images

__all__ = ["LocalisationLoss"]


@DISTILLATION_LOSS_REGISTRY.register()
class LocalisationLoss(SoftTargetLoss):
    """LD (Zheng et al., CVPR 2022, arXiv 2102.12252), for heads that predict distributions.

    w_box,i * T^2 * KL(softmax(t_i / T) || softmax(s_i / T)), with the logits t and s of the
    distance from sample i to an edge of its box: the mean over the four edges, over the samples of
    an image that an instance owns, and over the batch. An answer of the teacher that is not finite
    counts for nothing.
    """

    request = PredictionRequest(distributions=True)
    key = "LOCALISATION"

    def terms(
        self,
        student: dict[str, Tensor],
        teacher: dict[str, Tensor],
        weights: dict[str, Tensor],
        context: Context,
    ) -> dict[str, Tensor]:
        """See :class:`DistillationLoss`.

        Returns:
            "loss_distill_localisation".
        """
        predictions = context.predictions
        ours, theirs = (
            x.distributions / self.temperature for x in (predictions.student, predictions.teacher)
        )
        losses = predictions.weights["box"] * edge_divergences(ours, theirs)
        mean = mean_over_images(
            losses, predictions.image, len(context.instances), predictions.foreground
        )
        return {"loss_distill_localisation": self.weight * self.temperature**2 * mean}
