"""Weighting rules under study: ``train_net.py --register studies/rules.py ... AID.WEIGHTING NAME``.

A rule that gains AP over a constant weight moves to aid/modeling/weighting. D is the teacher's loss
on an instance.

Shape letters: G ground-truth instances of the batch.
"""

import torch
from detectron2.config import configurable
from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from torch import Tensor

from aid.modeling.families import DetectionQuality
from aid.modeling.weighting import (
    WEIGHTING_REGISTRY,
    ExponentialWeighting,
    TeacherStats,
    Weighting,
)
from aid.utils.errors import AIDError

# Lower bound of the quality, for instances that the teacher does not detect.
MIN_QUALITY = 0.01
# Momentum per iteration of the running mean of D in RelativeWeighting.
MOMENTUM = 0.99
# Classes that ClassWeighting excludes from imitation.
DISTRUSTED_CLASSES = ("Cyclist",)


@WEIGHTING_REGISTRY.register()
class RelativeWeighting(ExponentialWeighting):
    """w = exp(-alpha * D / mean D), with a running mean over the instances of all processes.

    An instance of mean loss has weight exp(-alpha), independent of the detector family, its loss
    weights and the state of training. Components of D are divided by the mean of D too, so that the
    weights of all components multiply to that of the instance.
    """

    @configurable
    def __init__(self, *, momentum: float = MOMENTUM, steps: int = 1, **kwargs):
        """
        Args:
            momentum: momentum of the running mean, per iteration; its first values are means over
                the batches so far.
            steps: micro-batches per iteration; the mean is updated once per micro-batch.
        """
        super().__init__(**kwargs)
        self.momentum = momentum ** (1 / steps)
        self.register_buffer("sum_and_count", torch.zeros(2))

    @classmethod
    def from_config(cls, cfg):
        return {"steps": cfg.SOLVER.ACCUMULATION_STEPS, **super().from_config(cfg)}

    def observe(self, stats: TeacherStats) -> None:
        if not self.training:
            return
        loss, _ = super().teacher_error(stats)
        finite = loss.isfinite()
        new = torch.stack([torch.where(finite, loss, 0.0).sum(), finite.sum()])
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(new)
        self.sum_and_count.mul_(self.momentum).add_(new)

    def teacher_error(self, stats: TeacherStats) -> tuple[Tensor, Tensor]:
        loss, background = super().teacher_error(stats)
        total, count = self.sum_and_count
        mean = torch.where(count > 0, total / count.clamp(min=1e-12), 1.0).clamp(min=1e-12)
        return loss / mean, background / mean


@WEIGHTING_REGISTRY.register()
class ClassWeighting(Weighting):
    """w = 0 on instances of DISTRUSTED_CLASSES, 1 on all others.

    The oracle of a study whose teacher is wrong about these classes: an upper bound for rules that
    have to estimate the weights.
    """

    requires_loss = False

    @configurable
    def __init__(self, *, distrusted: list[int], **kwargs):
        """
        Args:
            distrusted: category ids with weight 0.
        """
        super().__init__(**kwargs)
        self.distrusted = distrusted

    @classmethod
    def from_config(cls, cfg):
        dataset = cfg.DATASETS.TRAIN[0]
        known = MetadataCatalog.get(dataset).get("thing_classes", [])
        if not set(DISTRUSTED_CLASSES) <= set(known):
            raise AIDError(
                f"DISTRUSTED_CLASSES in studies/rules.py is {DISTRUSTED_CLASSES}: name classes of "
                f"{dataset}, which has {', '.join(known)}"
            )
        return {
            "distrusted": [known.index(x) for x in DISTRUSTED_CLASSES],
            **super().from_config(cfg),
        }

    def __str__(self) -> str:
        return f"{super().__str__()}, not on classes {self.distrusted}"

    def teacher_error(self, stats: TeacherStats) -> tuple[Tensor, Tensor]:
        loss, background = super().teacher_error(stats)
        wrong = torch.isin(stats.classes, stats.classes.new_tensor(self.distrusted))
        # A loss that is not finite is kept, for weight 0 whatever the class.
        return torch.where(loss.isfinite(), wrong.to(loss.dtype), loss), 0.0 * background

    def weight(self, loss: Tensor) -> Tensor:
        return 1 - loss


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
