"""Localisation distillation: imitate how sure the teacher is of each edge of a box.

Shape letters: N images, S samples.
"""

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from ..responses import Question
from .base import DISTILLATION_LOSS_REGISTRY, Context, check_temperature
from .response import mean_over_images

__all__ = ["LocalisationLoss"]


@DISTILLATION_LOSS_REGISTRY.register()
class LocalisationLoss(nn.Module):
    """LD (Zheng et al., CVPR 2022, arXiv 2102.12252), for heads that predict distributions.

    w_box,i * T^2 * KL(softmax(t_i / T) || softmax(s_i / T)), with the logits t and s of the
    distance from sample i to an edge of its box: the mean over the four edges, over the samples of
    an image that an instance owns, and over the batch. An answer of the teacher that is not finite
    counts for nothing.
    """

    asks = Question(distributions=True)

    @configurable
    def __init__(self, *, temperature: float, weight: float):
        """
        Args:
            temperature: T.
            weight: of the loss.

        Raises:
            AIDError: a temperature that is not positive.
        """
        super().__init__()
        check_temperature("DISTILLATION.LOCALISATION.TEMPERATURE", temperature)
        self.temperature = temperature
        self.weight = weight

    @classmethod
    def from_config(cls, cfg: CfgNode, levels, student_shapes, teacher_shapes) -> dict:
        keys = cfg.DISTILLATION.LOCALISATION
        return {"temperature": keys.TEMPERATURE, "weight": keys.WEIGHT}

    def extra_repr(self) -> str:
        return f"weight {self.weight}, temperature {self.temperature}"

    def forward(
        self,
        student: dict[str, Tensor],
        teacher: dict[str, Tensor],
        weights: dict[str, Tensor],
        context: Context,
    ) -> dict[str, Tensor]:
        """See DISTILLATION_LOSS_REGISTRY.

        Returns:
            "loss_distill_localisation".
        """
        answers = context.answers
        ours, theirs = (
            x.distributions / self.temperature for x in (answers.student, answers.teacher)
        )
        finite = theirs.flatten(1).isfinite().all(dim=1)
        theirs = torch.where(finite[:, None, None], theirs, 0.0)
        divergence = F.kl_div(
            ours.log_softmax(dim=2), theirs.log_softmax(dim=2), reduction="none", log_target=True
        ).sum(dim=2)
        losses = torch.where(finite, answers.weights["box"] * divergence.mean(dim=1), 0.0)
        mean = mean_over_images(losses, answers.image, len(context.instances), answers.owned)
        return {"loss_distill_localisation": self.weight * self.temperature**2 * mean}
