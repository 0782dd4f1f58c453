"""Input and output of a weighting rule.

Shape letters: N images, G instances of the batch, (H, W) size of a level.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from ..families import DetectionQuality, PerInstanceLosses

__all__ = ["TeacherStats", "ComponentWeights", "Weights"]


@dataclass
class TeacherStats:
    """What is known about the teacher on a batch.

    Attributes:
        teacher: its losses against the ground truth.
        classes: (G,), category ids of the ground truth.
        student: the student's own, where a rule request for them.
        quality: of the teacher's best detection of each instance, where a rule request for it.
    """

    teacher: PerInstanceLosses
    classes: Tensor | None = None
    student: PerInstanceLosses | None = None
    quality: DetectionQuality | None = None

    def only(self, *names: str) -> "TeacherStats":
        """What is known by these parts of the losses alone."""
        student = self.student.only(*names) if self.student else None
        return replace(self, teacher=self.teacher.only(*names), student=student)


@dataclass
class Weights:
    """Weights of imitation for a batch.

    Attributes:
        maps: {level: (N, 1, H, W)}, in the size of the level's features.
        boxes: (G,), for a loss that looks at instances instead of maps: normalised as the maps are,
            and of the whole image where the granularity is not the instance.
        instance: (G,), the weight of each instance; None where no stats was asked for.
        loss: (G,), the teacher's loss D on each instance, whatever the rule; None likewise.
        components: weights for prediction distillation; None without such a loss.
    """

    maps: dict[str, Tensor]
    boxes: Tensor
    instance: Tensor | None = None
    loss: Tensor | None = None
    components: "ComponentWeights | None" = None


@dataclass
class ComponentWeights:
    """Weights of imitation for a batch, of predictions about classes and about boxes separately.

    Attributes:
        cls, box: (G,), by the teacher's classification loss and its box loss on each instance.
        background: (N,), of the classes where there is no instance, by image.
    """

    cls: Tensor
    box: Tensor
    background: Tensor
