"""Input and output of weighting rules.

Shape letters: N images, G instances of the batch, (H, W) size of a level.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..families import DetectionQuality, PerInstanceLosses

__all__ = ["TeacherStats", "ComponentWeights", "Weights"]


@dataclass
class TeacherStats:
    """Statistics of the teacher on a batch.

    Attributes:
        teacher: its task losses.
        classes: (G,), category ids of the ground truth.
        student: task losses of the student, if the rule has ``requires_student``.
        quality: teacher's best detection of each instance, if the rule has ``requires_quality``.
    """

    teacher: PerInstanceLosses
    classes: Tensor | None = None
    student: PerInstanceLosses | None = None
    quality: DetectionQuality | None = None

    def only(self, *names: str) -> "TeacherStats":
        """Select components of the losses."""
        student = self.student.only(*names) if self.student else None
        return replace(self, teacher=self.teacher.only(*names), student=student)


@dataclass
class Weights:
    """Imitation weights of a batch.

    Attributes:
        maps: {level: (N, 1, H, W)}, in the size of the level's features.
        instance: (G,), the weight of each instance, before normalization and for any granularity;
            None if the rule needs no statistics.
        loss: (G,), the teacher's loss D on each instance, for any rule; None likewise.
        components: weights for prediction distillation; None without such a loss.
    """

    maps: dict[str, Tensor]
    instance: Tensor | None = None
    loss: Tensor | None = None
    components: "ComponentWeights | None" = None

    @classmethod
    def cat(cls, first: "Weights", second: "Weights") -> "Weights":
        """Join the weights of two batches; what one of them lacks the result lacks, too."""

        def joined(a: Tensor | None, b: Tensor | None) -> Tensor | None:
            return None if a is None or b is None else torch.cat([a, b])

        a, b = first.components, second.components
        components = None
        if a is not None and b is not None:
            pairs = ((a.cls, b.cls), (a.box, b.box), (a.background, b.background))
            components = ComponentWeights(*(torch.cat(pair) for pair in pairs))
        return cls(
            {level: torch.cat([x, second.maps[level]]) for level, x in first.maps.items()},
            joined(first.instance, second.instance),
            joined(first.loss, second.loss),
            components,
        )


@dataclass
class ComponentWeights:
    """Imitation weights of a batch, for predicted classes and boxes separately.

    Attributes:
        cls, box: (G,), from the teacher's classification loss and box loss on each instance.
        background: (N,), the weight of classes outside of all instances, by image.
    """

    cls: Tensor
    box: Tensor
    background: Tensor
