"""A weight that fades where the student has become better than the teacher."""

import torch
from torch import Tensor

from .base import WEIGHTING_REGISTRY
from .exponential import ExponentialWeighting
from .structures import Evidence

__all__ = ["StudentAwareWeighting"]


@WEIGHTING_REGISTRY.register()
class StudentAwareWeighting(ExponentialWeighting):
    """w = exp(-alpha * max(0, D - D_student)), over the parts that both losses have.

    A hard instance, on which both are bad, is imitated in full; one on which the student already
    does better than its teacher is not.
    """

    needs_student = True

    def disbelief(self, evidence: Evidence) -> tuple[Tensor, Tensor]:
        teacher, student = evidence.teacher, evidence.student
        loss = self._excess(teacher.parts, student.parts)
        # Levels that the student's heads do not read tell nothing: there is no excess.
        shared = [level for level in teacher.levels if level in student.levels]
        ours, theirs = ([x.levels.index(k) for k in shared] for x in (student, teacher))
        background = torch.zeros_like(next(iter(teacher.background.values())))
        background[:, theirs] = self._excess(
            {k: v[:, theirs] for k, v in teacher.background.items()},
            {k: v[:, ours] for k, v in student.background.items()},
        )
        return loss, background

    def _excess(self, teacher: dict[str, Tensor], student: dict[str, Tensor]) -> Tensor:
        # A list: the order of a set, and with it the rounding, changes from process to process.
        both = [k for k in teacher if k in student]
        teacher, student = (self.total({k: x[k] for k in both}) for x in (teacher, student))
        # Where the student's loss is not finite the teacher is the better one.
        return torch.where(student.isfinite(), teacher - student, 0.0 * teacher).clamp(min=0)
