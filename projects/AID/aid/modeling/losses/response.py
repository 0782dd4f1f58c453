"""Response distillation: imitate what the teacher says about each object, not how it sees it.

Shape letters: N images, G instances of the batch, S samples, K classes.
"""

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor

from ...utils.errors import AIDError
from ..boxes import elementwise_box_giou
from ..families import PairedPredictions, PredictionRequest
from .base import (
    DISTILLATION_LOSS_REGISTRY,
    Context,
    DistillationLoss,
    SoftTargetLoss,
    check_temperature,
)
from .functional import finite_only, mean_over_images, softmax_divergences

__all__ = [
    "BoxResponseLoss",
    "ResponseLoss",
    "box_losses",
    "check_min_score",
    "soft_target_losses",
]


@DISTILLATION_LOSS_REGISTRY.register()
class ResponseLoss(DistillationLoss):
    """Classes and boxes as the teacher gives them, each by its own part of the teacher's loss.

    For a sample i (an RoI or an anchor), with logits t and s and boxes b of teacher and student,

        classes    w_cls,i * T^2 * KL(p(t_i / T) || p(s_i / T))
        boxes      w_box,i * (1 - GIoU(b_t,i, b_s,i))

    p is the softmax (Hinton et al., arXiv 1503.02531) or, of sigmoid heads, one Bernoulli
    distribution per class, over which the divergences are summed (Yang et al., ICCV 2023, arXiv
    2308.14286). The first term is the mean over all samples of an image, the second over those
    that an instance owns, both averaged over the batch. An answer of the teacher that is not finite
    counts for nothing.
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
            cls_weight, box_weight: of the two terms.
            num_rois: proposals of a two-stage teacher in each image, beside the ground-truth boxes.
            min_score: see :class:`~aid.modeling.responses.PredictionRequest`.

        Raises:
            AIDError: a temperature that is not positive, fewer than 0 proposals, or a score that is
                no probability: below 0 all of a dense teacher's samples would be asked about.
        """
        super().__init__()
        check_temperature("DISTILLATION.RESPONSE.TEMPERATURE", temperature)
        if num_rois < 0:
            raise AIDError(f"DISTILLATION.RESPONSE.NUM_ROIS is {num_rois}: it must be 0 or more")
        check_min_score(min_score)
        self.temperature = temperature
        self.cls_weight = cls_weight
        self.box_weight = box_weight
        self.request = PredictionRequest(num_proposals=num_rois, min_score=min_score)

    @classmethod
    def from_config(cls, cfg: CfgNode, levels, student_shapes, teacher_shapes) -> dict:
        keys = cfg.DISTILLATION.RESPONSE
        return {
            "temperature": keys.TEMPERATURE,
            "cls_weight": keys.CLS_WEIGHT,
            "box_weight": keys.BOX_WEIGHT,
            "num_rois": keys.NUM_ROIS,
            "min_score": keys.MIN_SCORE,
        }

    def extra_repr(self) -> str:
        return (
            f"weights {self.cls_weight} cls, {self.box_weight} box, temperature {self.temperature}"
        )

    def terms(
        self,
        student: dict[str, Tensor],
        teacher: dict[str, Tensor],
        weights: dict[str, Tensor],
        context: Context,
    ) -> dict[str, Tensor]:
        """See :class:`DistillationLoss`.

        Returns:
            "loss_distill_response_cls", "loss_distill_response_box".
        """
        predictions, num_images = context.predictions, len(context.instances)
        cls = predictions.weights["cls"] * soft_target_losses(predictions, self.temperature)
        box = predictions.weights["box"] * box_losses(
            predictions.student.boxes, predictions.teacher.boxes
        )
        return {
            "loss_distill_response_cls": self.cls_weight
            * mean_over_images(cls, predictions.image, num_images),
            "loss_distill_response_box": self.box_weight
            * mean_over_images(box, predictions.image, num_images, predictions.foreground),
        }


@DISTILLATION_LOSS_REGISTRY.register()
class BoxResponseLoss(SoftTargetLoss):
    """Soft targets (Hinton et al., arXiv 1503.02531) on the ground-truth boxes alone.

    w_i * T^2 * KL(softmax(t_i / T) || softmax(s_i / T)), with the class logits t and s that the two
    box heads give for the box of instance i, and the weight of the teacher's whole loss: its mean
    over the instances of an image, averaged over the batch. An answer that is not finite counts for
    nothing.
    """

    request = PredictionRequest(truth=True)
    key = "RESPONSE"

    def terms(
        self,
        student: dict[str, Tensor],
        teacher: dict[str, Tensor],
        weights: dict[str, Tensor],
        context: Context,
    ) -> dict[str, Tensor]:
        """See :class:`DistillationLoss`.

        Returns:
            "loss_distill_response".
        """
        predictions = context.predictions
        losses = predictions.weights["all"] * soft_target_losses(predictions, self.temperature)
        mean = mean_over_images(
            losses, predictions.image, len(context.instances), predictions.is_truth
        )
        return {"loss_distill_response": self.weight * mean}


def check_min_score(value: float) -> None:
    """Refuse a least score of a dense teacher's samples that is no probability.

    Raises:
        AIDError: it is none.
    """
    if not 0 <= value <= 1:
        raise AIDError(f"DISTILLATION.RESPONSE.MIN_SCORE is {value}: it must be in 0 to 1")


def soft_target_losses(predictions: PairedPredictions, temperature: float) -> Tensor:
    """T^2 times the divergence (S,) of the classes; 0 where the teacher's answer is not finite."""
    ours, theirs = (x.logits / temperature for x in (predictions.student, predictions.teacher))
    finite, theirs = finite_only(theirs)
    if predictions.activation == "softmax":
        divergence = softmax_divergences(ours, theirs)
    else:
        # The cross-entropy without the entropy of the target.
        cost, least = (
            F.binary_cross_entropy_with_logits(x, theirs.sigmoid(), reduction="none")
            for x in (ours, theirs)
        )
        divergence = (cost - least).sum(dim=1)
    return temperature**2 * torch.where(finite, divergence, 0.0)


def box_losses(ours: Tensor, theirs: Tensor) -> Tensor:
    """1 - GIoU (S,) of boxes (S, 4).

    0 where the teacher's box is not finite or has no area, which even an equal box does not
    overlap; NaN, which ends the run, where only the student's is not finite.
    """
    known, ours_known = (x.isfinite().all(dim=1) for x in (theirs, ours))
    known &= (theirs[:, 2:] > theirs[:, :2]).all(dim=1)
    theirs = torch.where(known[:, None], theirs, 0.0)
    # Gradients of what is not finite would be NaN also where it counts for nothing.
    _, giou = elementwise_box_giou(torch.where((known & ours_known)[:, None], ours, theirs), theirs)
    return torch.where(known, torch.where(ours_known, 1 - giou, torch.nan), 0.0)
