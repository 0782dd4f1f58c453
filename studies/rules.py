"""Weighting rules under study: ``train_net.py --register studies/rules.py ... AID.WEIGHTING NAME``.

A rule that earns a place moves to aid/modeling/weighting. D is the teacher's loss on an instance,
G the number of instances in the batch.
"""

import torch
from detectron2.config import configurable
from torch import Tensor

from aid.modeling.families import DetectionQuality
from aid.modeling.weighting import WEIGHTING_REGISTRY, ExponentialWeighting, TeacherStats

# An instance that the teacher does not find at all counts as one of this quality.
MIN_QUALITY = 0.01


@WEIGHTING_REGISTRY.register()
class StudentAwareWeighting(ExponentialWeighting):
    """w = exp(-alpha * max(0, D - D_student)), over the parts that both losses have.

    A hard instance, on which both are bad, is imitated in full; one on which the student already
    does better than its teacher is not.
    """

    requires_student = True

    def teacher_error(self, stats: TeacherStats) -> tuple[Tensor, Tensor]:
        teacher, student = stats.teacher, stats.student
        loss = self._compare(teacher.components, student.components)
        # Levels that the student's heads do not read tell nothing: there is no excess.
        shared = [level for level in teacher.levels if level in student.levels]
        ours, theirs = ([x.levels.index(k) for k in shared] for x in (student, teacher))
        background = torch.zeros_like(next(iter(teacher.background.values())))
        background[:, theirs] = self._compare(
            {k: v[:, theirs] for k, v in teacher.background.items()},
            {k: v[:, ours] for k, v in student.background.items()},
        )
        return loss, background

    def _compare(self, teacher: dict[str, Tensor], student: dict[str, Tensor]) -> Tensor:
        # A list: the order of a set, and with it the rounding, changes from process to process.
        both = [k for k in teacher if k in student]
        teacher, student = (self.total({k: x[k] for k in both}) for x in (teacher, student))
        # Where the student's loss is not finite nothing speaks against the teacher.
        excess = self.excess(teacher, student)
        return torch.where(student.isfinite(), excess, 0.0 * teacher)

    def excess(self, teacher: Tensor, student: Tensor) -> Tensor:
        """What there is to disbelieve in a teacher with these losses, of any shape."""
        return (teacher - student).clamp(min=0)


@WEIGHTING_REGISTRY.register()
class StudentRatioWeighting(StudentAwareWeighting):
    """w = sigmoid(alpha * (log(1 + D_student) - log(1 + D))), over the parts that both losses have.

    That is s / (s + t) with s = (1 + D_student)^alpha and t = (1 + D)^alpha: 1/2 where both are
    equal, more where the student has more to learn, less where it is better. Other than in
    StudentAwareWeighting, how much worse the student is counts, and alpha 0 is plain distillation
    at half its strength.

    It stands in for the learned instance selectors of LIAF-KD (Liu et al., *Learnable Instance
    Attention Filtering for Adaptive Detector Distillation*, arXiv 2603.26088), and is not that
    method. At hand was the paper's abstract alone: selectors that are learned, weigh each instance
    anew as training goes on, and in which the student takes part. What a selector sees, its form
    and what trains it was not. Assumed is that it compares both losses on an instance; nothing is
    learned, in place of sigmoid(MLP(log(1 + D), log(1 + D_student))) the MLP is a fixed difference.
    A rule has no loss of its own, and imitation as the only signal is least where w is 0.
    """

    def excess(self, teacher: Tensor, student: Tensor) -> Tensor:
        return teacher.log1p() - student.log1p()

    def weight(self, loss: Tensor) -> Tensor:
        return torch.sigmoid(-self.alpha * loss)


class DetectionWeighting(ExponentialWeighting):
    """w = q ** alpha, with a quality q of the teacher's best detection of the instance.

    Written as exp(-alpha * D) with D = -log q. The best one is of the instance's class and has the
    largest IoU times score. The background, which has no detection, keeps the teacher's loss for D,
    which AID.BACKGROUND "loss" request for. A subclass says in :meth:`quality` what q is.
    """

    requires_quality = True

    def quality(self, best: DetectionQuality) -> Tensor:
        """(G,), in [0, 1]."""
        raise NotImplementedError

    def teacher_error(self, stats: TeacherStats) -> tuple[Tensor, Tensor]:
        loss, background = super().teacher_error(stats)
        quality = self.quality(stats.quality).clamp(min=MIN_QUALITY)
        # A loss that is not finite weighs nothing, whatever is detected.
        return torch.where(loss.isfinite(), -quality.log(), loss), background


@WEIGHTING_REGISTRY.register()
class QualityWeighting(DetectionWeighting):
    """q is the root of IoU times score."""

    def quality(self, best: DetectionQuality) -> Tensor:
        return (best.score * best.iou).sqrt()


@WEIGHTING_REGISTRY.register()
class ScoreTimesIoUWeighting(DetectionWeighting):
    """q is IoU times score; with alpha a the same as QualityWeighting with alpha 2a.

    After NVIDIA TAO's distillation of RT-DETR with criterion "IOU" (training_step of
    nvidia_tao_pytorch/cv/rtdetr/distillation/distiller.py in NVIDIA/tao_pytorch_backend, commit
    1e6c939): there each query of the teacher has its best class's score times its largest IoU with
    a box of the ground truth, of any class, and the score alone in an image without boxes. A place
    of a feature map has the sum of these, by the cosine similarity of query and feature, of which
    less than 0.01 counts as 0.01; maps are divided by their maximum in the image and multiply both
    features before the mean squared error. Followed is the number, with alpha 1, and the 0.01. It
    differs that an instance of the ground truth has it, in all of its box, from the best detection
    of its class; that nothing is divided by the maximum; and the background, see the base.
    """

    def quality(self, best: DetectionQuality) -> Tensor:
        return best.score * best.iou


@WEIGHTING_REGISTRY.register()
class ScoreWeighting(DetectionWeighting):
    """q is the score, and maps are divided by their mean as by AID.NORMALIZE, whatever that is.

    After Ultralytics' distillation (loss_sl2 of ultralytics/nn/distill_model.py, version 8.4.190),
    for each level the sum over all places of score times squared difference, divided by the sum of
    scores and the number of channels, where a place has the score of its best class by the teacher.
    With weights s / mean(s) and alpha 1, FitNetLoss is that loss but for its factor 1/2. It differs
    that an instance has one score in all of its box, that of the best detection of its class; that
    the mean is over the batch of all processes, there over one's; and the background, which has
    small scores there, see the base and AID.BACKGROUND.
    """

    @configurable
    def __init__(self, **kwargs):
        """
        Args:
            kwargs: see the bases.
        """
        super().__init__(**{**kwargs, "normalize": True})

    def quality(self, best: DetectionQuality) -> Tensor:
        return best.score
