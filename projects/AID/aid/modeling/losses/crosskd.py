"""Cross-head distillation, CrossKD (Wang et al., CVPR 2024, arXiv 2306.11369).

Shape letters: S samples, K classes.
"""

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor

from ...utils.errors import AIDError
from ...utils.text import counted
from ..detectors.gfl_losses import soft_quality_focal_losses
from ..families import PairedPredictions, PredictionRequest
from .base import DISTILLATION_LOSS_REGISTRY, PredictionLoss
from .functional import edge_divergences, finite_only
from .response import check_min_score, giou_losses

__all__ = ["CrossKDLoss"]

# Exponent of the quality focal loss in all of the authors' configs.
BETA = 1.0


@DISTILLATION_LOSS_REGISTRY.register()
class CrossKDLoss(PredictionLoss):
    """Distance of cross-head predictions from the teacher's, for RetinaNet, GFL and FCOS.

    Cross-head predictions are the output of the last layers of the teacher's head, which is frozen,
    on the student's features within its own head. For sample i, with logits c of these predictions
    and t of the teacher, their scores p, and boxes b or the distributions of box edges q of both,

        classes    w_cls,i * sum over classes of abs(p(t_i) - p(c_i)) * BCE(p(c_i), p(t_i))
        boxes      w_box,i * (1 - GIoU(b_t,i, b_c,i)), of GFL mean over edges of KL(q_t,i || q_c,i)

    The first term is the mean over all samples of an image, the second over those that match an
    instance, both averaged over the batch, as in :class:`ResponseLoss`. Samples whose prediction by
    the teacher is not finite have loss 0. The terms are "loss_distill_cross_cls" and
    "loss_distill_cross_box".
    """

    @configurable
    def __init__(self, *, num_convs: int, cls_weight: float, box_weight: float, min_score: float):
        """
        Args:
            num_convs: convolutions at the end of each branch of the teacher's head that the
                student's features pass through, see
                :func:`~aid.modeling.families.cross_head.cross_predictions`.
            cls_weight, box_weight: weights of the two terms.
            min_score: see :class:`~aid.modeling.families.PredictionRequest`.

        Raises:
            AIDError: a negative number of convolutions, or a score outside of [0, 1].
        """
        super().__init__(
            {
                "cls": ("loss_distill_cross_cls", cls_weight),
                "box": ("loss_distill_cross_box", box_weight),
            }
        )
        if num_convs < 0:
            raise AIDError(f"DISTILLATION.CROSS_KD.NUM_CONVS is {num_convs}: it must be 0 or more")
        check_min_score(min_score)
        self.request = PredictionRequest(min_score=min_score, cross_convs=num_convs)

    @classmethod
    def arguments(cls, cfg: CfgNode) -> dict:
        keys = cfg.DISTILLATION.CROSS_KD
        return {
            "num_convs": keys.NUM_CONVS,
            "cls_weight": keys.CLS_WEIGHT,
            "box_weight": keys.BOX_WEIGHT,
            "min_score": cfg.DISTILLATION.RESPONSE.MIN_SCORE,
        }

    def extra_repr(self) -> str:
        number = counted(self.request.cross_convs or 0, "convolution")
        return f"{super().extra_repr()}, {number} of the teacher's"

    def sample_losses(self, predictions: PairedPredictions) -> dict[str, Tensor]:
        cross, teacher = predictions.cross, predictions.teacher
        assert cross is not None
        finite, logits = finite_only(teacher.logits)
        cls = soft_quality_focal_losses(cross.logits, logits.sigmoid(), BETA)
        if cross.distributions is None or teacher.distributions is None:
            box = giou_losses(cross.boxes, teacher.boxes)
        else:
            box = edge_divergences(cross.distributions, teacher.distributions)
        return {"cls": torch.where(finite, cls, 0.0), "box": box}
