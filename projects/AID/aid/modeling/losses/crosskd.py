"""CrossKD: imitate the teacher's predictions by what its own head says of the student's features.

Shape letters: S samples, K classes.
"""

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor

from ...utils.errors import AIDError
from ..detectors.gfl import soft_quality_focal_losses
from ..families import PredictionRequest, Predictions
from .base import DISTILLATION_LOSS_REGISTRY, Context, DistillationLoss
from .functional import edge_divergences, finite_only, mean_over_images
from .response import box_losses, check_min_score

__all__ = ["CrossKDLoss"]

# Exponent of the quality focal loss, in all of the authors' configs.
BETA = 1.0


@DISTILLATION_LOSS_REGISTRY.register()
class CrossKDLoss(DistillationLoss):
    """CrossKD (Wang et al., CVPR 2024, arXiv 2306.11369) for RetinaNet, GFL and FCOS.

    The student's features within its head go through the end of the teacher's head, which is
    frozen. For sample i, with logits c of these cross-head predictions and t of the teacher, their
    scores p, and boxes b or the distributions of box edges q of both,

        classes    w_cls,i * sum over classes of abs(p(t_i) - p(c_i)) * BCE(p(c_i), p(t_i))
        boxes      w_box,i * (1 - GIoU(b_t,i, b_c,i)), of GFL mean over edges of KL(q_t,i || q_c,i)

    The first term is the mean over all samples of an image, the second over those that an instance
    owns, both averaged over the batch, as in :class:`ResponseLoss`. An answer of the teacher that
    is not finite counts for nothing.
    """

    @configurable
    def __init__(self, *, num_convs: int, cls_weight: float, box_weight: float, min_score: float):
        """
        Args:
            num_convs: convolutions at the end of each branch of the teacher's head that the
                student's features go through, see
                :func:`~aid.modeling.responses.cross.cross_predictions`.
            cls_weight, box_weight: of the two terms.
            min_score: see :class:`~aid.modeling.responses.PredictionRequest`.

        Raises:
            AIDError: fewer than 0 convolutions, or a score that is no probability.
        """
        super().__init__()
        if num_convs < 0:
            raise AIDError(f"DISTILLATION.CROSS_KD.NUM_CONVS is {num_convs}: it must be 0 or more")
        check_min_score(min_score)
        self.cls_weight = cls_weight
        self.box_weight = box_weight
        self.request = PredictionRequest(min_score=min_score, cross_convs=num_convs)

    @classmethod
    def from_config(cls, cfg: CfgNode, levels, student_shapes, teacher_shapes) -> dict:
        keys = cfg.DISTILLATION.CROSS_KD
        return {
            "num_convs": keys.NUM_CONVS,
            "cls_weight": keys.CLS_WEIGHT,
            "box_weight": keys.BOX_WEIGHT,
            "min_score": cfg.DISTILLATION.RESPONSE.MIN_SCORE,
        }

    def extra_repr(self) -> str:
        return (
            f"weights {self.cls_weight} cls, {self.box_weight} box, "
            f"{self.request.cross_convs} convolutions of the teacher's"
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
            "loss_distill_cross_cls", "loss_distill_cross_box".
        """
        predictions, num_images = context.predictions, len(context.instances)
        cls = predictions.weights["cls"] * _class_losses(predictions.cross, predictions.teacher)
        box = predictions.weights["box"] * _box_losses(predictions.cross, predictions.teacher)
        return {
            "loss_distill_cross_cls": self.cls_weight
            * mean_over_images(cls, predictions.image, num_images),
            "loss_distill_cross_box": self.box_weight
            * mean_over_images(box, predictions.image, num_images, predictions.foreground),
        }


def _class_losses(cross: Predictions, teacher: Predictions) -> Tensor:
    """Quality focal losses (S,) with the teacher's scores as targets."""
    finite, theirs = finite_only(teacher.logits)
    return torch.where(finite, soft_quality_focal_losses(cross.logits, theirs.sigmoid(), BETA), 0.0)


def _box_losses(cross: Predictions, teacher: Predictions) -> Tensor:
    """Divergences (S,) of distributions where the heads predict them, else GIoU losses."""
    if teacher.distributions is None:
        return box_losses(cross.boxes, teacher.boxes)
    return edge_divergences(cross.distributions, teacher.distributions)
