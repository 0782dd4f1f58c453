"""Response distillation: imitate what the teacher says about each object, not how it sees it.

Shape letters: N images, G instances of the batch, K classes.
"""

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from .base import DISTILLATION_LOSS_REGISTRY, Context

__all__ = ["BoxResponseLoss"]


@DISTILLATION_LOSS_REGISTRY.register()
class BoxResponseLoss(nn.Module):
    """Soft targets (Hinton et al., arXiv 1503.02531) on the ground-truth boxes.

    w_i * T^2 * KL(softmax(t_i / T) || softmax(s_i / T)), with the class logits t and s that the two
    box heads give for the box of instance i: its mean over the instances of an image, averaged over
    the batch. An answer that is not finite counts for nothing.
    """

    needs_responses = True

    @configurable
    def __init__(self, *, temperature: float, weight: float):
        """
        Args:
            temperature: T.
            weight: of the loss.
        """
        super().__init__()
        self.temperature = temperature
        self.weight = weight

    @classmethod
    def from_config(cls, cfg: CfgNode, levels, student_shapes, teacher_shapes) -> dict:
        keys = cfg.DISTILLATION.RESPONSE
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
            "loss_distill_response".
        """
        answers = context.responses
        ours, theirs = (x.float() / self.temperature for x in (answers.student, answers.teacher))
        finite = theirs.isfinite().all(dim=1)
        theirs = torch.where(finite[:, None], theirs, 0.0).log_softmax(dim=1)
        divergence = F.kl_div(
            ours.log_softmax(dim=1), theirs, reduction="none", log_target=True
        ).sum(dim=1)
        weighted = torch.where(finite, answers.weights, 0.0) * divergence
        images = weighted.split([len(x) for x in context.instances])
        means = [x.sum() / max(1, len(x)) for x in images]
        return {
            "loss_distill_response": self.weight * self.temperature**2 * torch.stack(means).mean()
        }
