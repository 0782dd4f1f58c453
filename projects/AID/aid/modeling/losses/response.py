"""Response distillation: imitate the teacher's classes and boxes.

Shape letters: S samples, K classes.
"""

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor

from ...utils.errors import AIDError, check_positive
from ..boxes import elementwise_box_giou
from ..families import PairedPredictions, PredictionRequest
from .base import DISTILLATION_LOSS_REGISTRY, PredictionLoss
from .functional import finite_only, softmax_divergences

__all__ = ["ResponseLoss", "check_min_score", "giou_losses", "soft_target_losses"]


@DISTILLATION_LOSS_REGISTRY.register()
class ResponseLoss(PredictionLoss):
    """Soft targets for classes and GIoU loss for boxes, each with its own imitation weight.

    For a sample i (an RoI or an anchor), with logits t and s and boxes b of teacher and student,

        classes    w_cls,i * T^2 * KL(p(t_i / T) || p(s_i / T))
        boxes      w_box,i * (1 - GIoU(b_t,i, b_s,i))

    p is the softmax (Hinton et al., arXiv 1503.02531) or, of sigmoid heads, one Bernoulli
    distribution per class, over which the divergences are summed (Yang et al., ICCV 2023, arXiv
    2308.14286). The first term is the mean over all samples of an image, the second over those
    that match an instance, both averaged over the batch. Samples whose prediction by the teacher
    is not finite have loss 0. The terms are "loss_distill_response_cls" and
    "loss_distill_response_box".
    """

    @configurable
    def __init__(
        self,
        *,
        temperature: float,
        cls_weight: float,
        box_weight: float,
        num_rois: int,
        min_score: float,
    ):
        """
        Args:
            temperature: T.
            cls_weight, box_weight: weights of the two terms.
            num_rois: proposals of a two-stage teacher in each image, beside the ground-truth boxes.
            min_score: see :class:`~aid.modeling.families.PredictionRequest`.

        Raises:
            AIDError: a temperature that is not positive, a negative number of proposals, or a score
                outside of [0, 1].
        """
        super().__init__(
            {
                "cls": ("loss_distill_response_cls", cls_weight),
                "box": ("loss_distill_response_box", box_weight),
            }
        )
        check_positive("DISTILLATION.RESPONSE.TEMPERATURE", temperature)
        if num_rois < 0:
            raise AIDError(f"DISTILLATION.RESPONSE.NUM_ROIS is {num_rois}: it must be 0 or more")
        check_min_score(min_score)
        self.temperature = temperature
        self.request = PredictionRequest(num_proposals=num_rois, min_score=min_score)

    @classmethod
    def arguments(cls, cfg: CfgNode) -> dict:
        keys = cfg.DISTILLATION.RESPONSE
        return {
            "temperature": keys.TEMPERATURE,
            "cls_weight": keys.CLS_WEIGHT,
            "box_weight": keys.BOX_WEIGHT,
            "num_rois": keys.NUM_ROIS,
            "min_score": keys.MIN_SCORE,
        }

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, temperature {self.temperature}"

    def sample_losses(self, predictions: PairedPredictions) -> dict[str, Tensor]:
        return {
            "cls": soft_target_losses(predictions, self.temperature),
            "box": giou_losses(predictions.student.boxes, predictions.teacher.boxes),
        }


def check_min_score(value: float) -> None:
    """Check that the score threshold of a dense teacher's samples is a probability.

    Raises:
        AIDError: it is not.
    """
    if not 0 <= value <= 1:
        raise AIDError(f"DISTILLATION.RESPONSE.MIN_SCORE is {value}: it must be in 0 to 1")


def soft_target_losses(predictions: PairedPredictions, temperature: float) -> Tensor:
    """Divergences (S,) of classes times T^2; 0 where the teacher's logits are not finite."""
    student, teacher = (x.logits / temperature for x in (predictions.student, predictions.teacher))
    finite, teacher = finite_only(teacher)
    if predictions.activation == "softmax":
        divergence = softmax_divergences(student, teacher)
    else:
        # KL = cross-entropy - entropy of the target.
        cross_entropy, entropy = (
            F.binary_cross_entropy_with_logits(x, teacher.sigmoid(), reduction="none")
            for x in (student, teacher)
        )
        divergence = (cross_entropy - entropy).sum(dim=1)
    return temperature**2 * torch.where(finite, divergence, 0.0)


def giou_losses(student: Tensor, teacher: Tensor) -> Tensor:
    """GIoU losses (S,), 1 - GIoU, of boxes (S, 4).

    0 where the teacher's box is not finite or has no area: even an equal box has no IoU with an
    empty one. NaN, which ends the run, where only the student's box is not finite.
    """
    valid, finite = teacher.isfinite().all(dim=1), student.isfinite().all(dim=1)
    valid &= (teacher[:, 2:] > teacher[:, :2]).all(dim=1)
    teacher = torch.where(valid[:, None], teacher, 0.0)
    # Replaced before the GIoU: masking its output alone would leave NaN in the gradient.
    student = torch.where((valid & finite)[:, None], student, teacher)
    _, giou = elementwise_box_giou(student, teacher)
    return torch.where(valid, torch.where(finite, 1 - giou, torch.nan), 0.0)
