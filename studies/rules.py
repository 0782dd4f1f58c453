"""Weighting rules under study: ``train_net.py --register studies/rules.py ... AID.WEIGHTING NAME``.

A rule that earns a place moves to aid/modeling/weighting. Shape letters: N images, G instances of
the batch, L levels of the teacher's losses. D are losses of the teacher, if nothing else is said.
"""

import torch
from torch import Tensor

from aid.modeling.instance_loss import DetectionQuality
from aid.modeling.weighting import WEIGHTING_REGISTRY, Evidence, ExponentialWeighting

# An instance that the teacher does not find at all counts as one of this quality.
MIN_QUALITY = 0.01


@WEIGHTING_REGISTRY.register()
class StudentAwareWeighting(ExponentialWeighting):
    """w = exp(-alpha * max(0, D - D_student)), over the parts that both losses have.

    A hard instance, on which both are bad, is imitated in full; one on which the student already
    does better than its teacher is not.
    """

    needs_student = True

    def disbelief(self, evidence: Evidence) -> tuple[Tensor, Tensor]:
        teacher, student = evidence.teacher, evidence.student
        loss = self._compare(teacher.parts, student.parts)
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


class DetectionWeighting(ExponentialWeighting):
    """w = q ** alpha, with a quality q of the teacher's best detection of the instance.

    Written as exp(-alpha * D) with D = -log q. The background, which has no detection, keeps the
    teacher's loss for D. A subclass says in :meth:`quality` what q is.
    """

    needs_quality = True

    def quality(self, best: DetectionQuality) -> Tensor:
        """(G,), in [0, 1]."""
        raise NotImplementedError

    def disbelief(self, evidence: Evidence) -> tuple[Tensor, Tensor]:
        loss, background = super().disbelief(evidence)
        quality = self.quality(evidence.quality).clamp(min=MIN_QUALITY)
        # A loss that is not finite weighs nothing, whatever is detected.
        return torch.where(loss.isfinite(), -quality.log(), loss), background


@WEIGHTING_REGISTRY.register()
class QualityWeighting(DetectionWeighting):
    """q is the root of IoU times score."""

    def quality(self, best: DetectionQuality) -> Tensor:
        return (best.score * best.iou).sqrt()
