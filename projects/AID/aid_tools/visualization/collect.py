"""What is shown of an image: the weights, attention and features of a training step.

Shape letters: G instances of the image, (H, W) size of a level.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aid.modeling.distiller import Distiller, TeacherOutput
from aid.modeling.meta_arch import DistillationMixin

__all__ = ["Seen", "as_in_first_step", "collect"]


@dataclass(frozen=True)
class Seen:
    """An image as one teacher and its student see it, on the CPU.

    Attributes:
        weights: (G,), of imitation on each instance, whatever the granularity of the maps; None
            where D is not asked for.
        losses: (G,), the teacher's loss D; None likewise.
        parts: {name: (G,)}, what each part contributes to D; empty likewise.
        strides: {level: pixels per cell} of the levels that are imitated, finest first.
        maps: {level: (H, W)}, weights of imitation.
        attention: {level: (H, W)}, the teacher's, of mean 1.
        student_attention: likewise.
        difference: {level: (H, W)}, root of the mean over channels of (teacher - student)^2, in
            units of the teacher's own root mean square on that level; None where no loss adapts the
            student's features to the teacher's.
    """

    weights: Tensor | None
    losses: Tensor | None
    parts: dict[str, Tensor]
    strides: dict[str, int]
    maps: dict[str, Tensor]
    attention: dict[str, Tensor]
    student_attention: dict[str, Tensor]
    difference: dict[str, Tensor] | None

    def largest_part(self, instance: int) -> tuple[str, float]:
        """Name of the part of D that is the largest, or not finite, and its value."""
        values = {k: v[instance].nan_to_num(nan=torch.inf).item() for k, v in self.parts.items()}
        name = max(values, key=values.get)
        return name, values[name]


@torch.no_grad()
def collect(
    student: DistillationMixin, sample: dict, attention: Callable[[Tensor], Tensor]
) -> list[Seen]:
    """What each teacher of a student sees in an image, with a training step's own functions.

    Args:
        student: with its teachers, in eval mode.
        sample: one of the model's ``batched_inputs``.
        attention: from features (N, C, H, W) to attention (N, 1, H, W) of mean 1.
    """
    instances = [sample["instances"].to(student.device)]
    images = student.preprocess_image([sample]).tensor
    features = student.backbone(images)
    outputs = student.evaluate_teachers([sample], instances, images, features)
    return [
        _seen(distiller, judgement, features, attention)
        for distiller, judgement in zip(student.distillers, outputs, strict=True)
    ]


def _seen(
    distiller: Distiller,
    judgement: TeacherOutput,
    features: dict[str, Tensor],
    attention: Callable[[Tensor], Tensor],
) -> Seen:
    weights, stats = judgement.weights, judgement.stats
    theirs = {level: judgement.view.features[level].float() for level in distiller.strides}
    ours = {level: features[level].float() for level in distiller.strides}
    parts, difference = {}, None
    if stats is not None:
        coefficients = distiller.weighting.coefficients
        found = stats.teacher.components.items()
        parts = {name: (coefficients.get(name, 1.0) * part).cpu() for name, part in found}
    # The losses that ask for equal features; others leave their scale, or all of them, free.
    adapting = [loss for loss in distiller.losses.values() if hasattr(loss, "adapt")]
    if adapting:
        ones = {level: torch.ones_like(x[:, :1]) for level, x in theirs.items()}
        difference = {
            level: _difference(*adapting[0].compared(level, ours[level], teacher, ones[level]))
            for level, teacher in theirs.items()
        }
    teacher_attention, student_attention = (
        {level: attention(x)[0, 0].cpu() for level, x in maps.items()} for maps in (theirs, ours)
    )
    return Seen(
        weights=None if weights.instance is None else weights.instance.cpu(),
        losses=None if weights.loss is None else weights.loss.cpu(),
        parts=parts,
        strides=distiller.strides,
        maps={level: x[0, 0].cpu() for level, x in weights.maps.items()},
        attention=teacher_attention,
        student_attention=student_attention,
        difference=difference,
    )


def _difference(student: Tensor, teacher: Tensor) -> Tensor:
    distance = (teacher - student).square().mean(dim=1).sqrt()[0]
    scale = teacher.square().mean().sqrt()
    return (distance / scale.clamp(min=1e-12)).cpu()


@contextmanager
def as_in_first_step(backbone: nn.Module) -> Iterator[None]:
    """Let batch norm go by the batch, as in training, and forget it afterwards.

    The running statistics of weights that were never trained are no statistics of anything.
    """
    mode, before = backbone.training, copy.deepcopy(backbone.state_dict())
    backbone.train()
    try:
        yield
    finally:
        backbone.train(mode)
        backbone.load_state_dict(before)
