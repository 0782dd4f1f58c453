"""Weighting rules under study: ``train_net.py --register studies/rules.py ... AID.WEIGHTING NAME``.

Rules that prove useful move to aid/modeling/weighting. D is the teacher's loss on an instance.

Shape letters: G ground-truth instances of the batch.
"""

import torch
from detectron2.config import configurable
from torch import Tensor

from aid.modeling.families import DetectionQuality
from aid.modeling.weighting import WEIGHTING_REGISTRY, ExponentialWeighting, TeacherStats

# Lower bound of the quality, for instances that the teacher does not detect.
MIN_QUALITY = 0.01


@WEIGHTING_REGISTRY.register()
class StudentAwareWeighting(ExponentialWeighting):
    """w = exp(-alpha * max(0, D - D_student)), over the components that both losses have.

    The weight is 1 on an instance that is equally hard for both, and below 1 where the student has
    the smaller loss.
    """

    requires_student = True

    def teacher_error(self, stats: TeacherStats) -> tuple[Tensor, Tensor]:
        teacher, student = stats.teacher, stats.student
        loss = self._compare(teacher.components, student.components)
        # The excess is 0 on levels that the student's heads do not read.
        shared = [level for level in teacher.levels if level in student.levels]
        of_student, of_teacher = ([x.levels.index(k) for k in shared] for x in (student, teacher))
        background = torch.zeros_like(next(iter(teacher.background.values())))
        background[:, of_teacher] = self._compare(
            {k: v[:, of_teacher] for k, v in teacher.background.items()},
            {k: v[:, of_student] for k, v in student.background.items()},
        )
        return loss, background

    def _compare(self, teacher: dict[str, Tensor], student: dict[str, Tensor]) -> Tensor:
        """Excess of the teacher's loss; 0 where the student's loss is not finite."""
        # A list, since the order of a set, and with it the rounding, differs between processes.
        both = [k for k in teacher if k in student]
        teacher, student = (self.total({k: x[k] for k in both}) for x in (teacher, student))
        excess = self.excess(teacher, student)
        return torch.where(student.isfinite(), excess, 0.0 * teacher)

    def excess(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Teacher error for losses of teacher and student of any shape."""
        return (teacher - student).clamp(min=0)


@WEIGHTING_REGISTRY.register()
class StudentRatioWeighting(StudentAwareWeighting):
    """w = sigmoid(alpha * (log(1 + D_student) - log(1 + D))), over components of both losses.

    This is s / (s + t) with s = (1 + D_student)^alpha and t = (1 + D)^alpha: 1/2 where both losses
    are equal, more where the student's is larger, less where it is smaller. Unlike
    StudentAwareWeighting it also depends on how much larger the student's loss is, and alpha 0 is
    plain distillation at half its strength.

    It is a substitute for the learned instance selectors of LIAF-KD (Liu et al., *Learnable
    Instance Attention Filtering for Adaptive Detector Distillation*, arXiv 2603.26088), and not
    that method. Only the paper's abstract was available: the selectors are learned, weight each
    instance anew during training, and involve the student. Their input, form and training objective
    are not known. The assumption here is that they compare both losses on an instance. Nothing is
    learned: a fixed difference replaces the MLP in sigmoid(MLP(log(1 + D), log(1 + D_student))),
    since a rule has no loss of its own, and the distillation loss alone is minimal at w = 0.
    """

    def excess(self, teacher: Tensor, student: Tensor) -> Tensor:
        return teacher.log1p() - student.log1p()

    def weight(self, loss: Tensor) -> Tensor:
        return torch.sigmoid(-self.alpha * loss)


class DetectionWeighting(ExponentialWeighting):
    """Base class of rules w = q ** alpha, q the quality of the teacher's best detection.

    The weight is computed as exp(-alpha * D) with D = -log q. The best detection of an instance is
    of its class and has the largest IoU times score. The background has no detection; its D, which
    AID.BACKGROUND "loss" reads, is the teacher's loss. A subclass defines :meth:`quality`.
    """

    requires_quality = True

    def quality(self, best: DetectionQuality) -> Tensor:
        """Quality q (G,) of the best detections, in [0, 1]."""
        raise NotImplementedError

    def teacher_error(self, stats: TeacherStats) -> tuple[Tensor, Tensor]:
        loss, background = super().teacher_error(stats)
        quality = self.quality(stats.quality).clamp(min=MIN_QUALITY)
        # A loss that is not finite is kept, for weight 0 whatever the detection.
        return torch.where(loss.isfinite(), -quality.log(), loss), background


@WEIGHTING_REGISTRY.register()
class QualityWeighting(DetectionWeighting):
    """Quality q = sqrt(IoU * score)."""

    def quality(self, best: DetectionQuality) -> Tensor:
        return (best.score * best.iou).sqrt()


@WEIGHTING_REGISTRY.register()
class ScoreTimesIoUWeighting(DetectionWeighting):
    """Quality q = IoU * score; alpha a is equivalent to QualityWeighting with alpha 2a.

    Follows NVIDIA TAO's distillation of RT-DETR with criterion "IOU" (training_step of
    nvidia_tao_pytorch/cv/rtdetr/distillation/distiller.py in NVIDIA/tao_pytorch_backend, commit
    1e6c939). There each query of the teacher has the score of its best class times its largest IoU
    with a ground-truth box of any class, and the score alone in an image without boxes. A position
    of a feature map has the sum of these, weighted by the cosine similarity of query and feature,
    of which less than 0.01 counts as 0.01; maps are divided by their maximum in the image and
    multiply both features before the mean squared error.

    Common to both are the product, for alpha 1, and the bound of 0.01. Here the weight belongs to a
    ground-truth instance, in all of its box, and comes from the best detection of its class; maps
    are not divided by their maximum; the background differs, see the base class.
    """

    def quality(self, best: DetectionQuality) -> Tensor:
        return best.score * best.iou


@WEIGHTING_REGISTRY.register()
class ScoreWeighting(DetectionWeighting):
    """Quality q = score, with maps divided by their mean for any value of AID.NORMALIZE.

    Follows Ultralytics' distillation (loss_sl2 of ultralytics/nn/distill_model.py, version
    8.4.190): for each level the sum over all positions of score times squared difference, divided
    by the sum of scores and the number of channels, with the score of the teacher's best class at
    the position. With weights s / mean(s) and alpha 1, FitNetLoss is that loss except for its
    factor 1/2.

    Here an instance has one score in all of its box, that of the best detection of its class; the
    mean is over the batches of all processes, there over that of one; and the background differs,
    which has small scores there, see the base class and AID.BACKGROUND.
    """

    @configurable
    def __init__(self, **kwargs):
        """
        Args:
            kwargs: see the base classes; ``normalize`` has no effect.
        """
        super().__init__(**{**kwargs, "normalize": True})

    def quality(self, best: DetectionQuality) -> Tensor:
        return best.score
