"""Weights, attention and feature differences of a training step, for visualization.

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
    """Weights, attention and features of one teacher and its student on an image, on the CPU.

    Attributes:
        weights: (G,), imitation weight of each instance, for any granularity of the maps; None if
            the weighting rule needs no per-instance loss D.
        losses: (G,), the teacher's per-instance loss D; None in the same case.
        parts: {name: (G,)}, contribution of each component to D; empty in the same case.
        strides: {level: pixels per cell} of the imitated levels, finest first.
        maps: {level: (H, W)}, weight maps.
        attention: {level: (H, W)}, spatial attention of the teacher, with mean 1.
        student_attention: {level: (H, W)}, spatial attention of the student, with mean 1.
        difference: {level: (H, W)}, root of the mean over channels of (teacher - student)^2, in
            units of the teacher's root mean square on that level; None if no loss adapts the
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


@torch.no_grad()
def collect(
    student: DistillationMixin, sample: dict, attention: Callable[[Tensor], Tensor]
) -> list[Seen]:
    """Compute the visualized quantities of an image with the functions of a training step.

    Args:
        student: student with its teachers, in eval mode.
        sample: one of the model's ``batched_inputs``.
        attention: function from features (N, C, H, W) to attention (N, 1, H, W) with mean 1.

    Returns:
        One result for each teacher.
    """
    instances = [sample["instances"].to(student.device)]
    images = student.preprocess_image([sample]).tensor
    features = student.backbone(images)
    outputs = student.evaluate_teachers([sample], instances, images, features)
    return [
        _seen(distiller, output, features, attention)
        for distiller, output in zip(student.distillers, outputs, strict=True)
    ]


def _seen(
    distiller: Distiller,
    output: TeacherOutput,
    features: dict[str, Tensor],
    attention: Callable[[Tensor], Tensor],
) -> Seen:
    weights, stats = output.weights, output.stats
    teacher = {k: x.float() for k, x in distiller.aligned(output.view, features).items()}
    student = {level: features[level].float() for level in distiller.strides}
    parts, difference = {}, None
    if stats is not None:
        coefficients = distiller.weighting.coefficients
        components = stats.teacher.components.items()
        parts = {name: (coefficients.get(name, 1.0) * x).cpu() for name, x in components}
    # Only losses with adapters compare feature values; the others ignore their scale.
    adapting = [loss for loss in distiller.losses.values() if hasattr(loss, "adapt")]
    if adapting:
        ones = {level: torch.ones_like(x[:, :1]) for level, x in teacher.items()}
        difference = {
            level: _difference(*adapting[0].compared(level, student[level], x, ones[level]))
            for level, x in teacher.items()
        }
    teacher_attention, student_attention = (
        {level: attention(x)[0, 0].cpu() for level, x in maps.items()}
        for maps in (teacher, student)
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
    """Use batch statistics in the batch norm layers, and restore the backbone afterwards.

    The running statistics of an untrained backbone are meaningless.
    """
    mode, before = backbone.training, copy.deepcopy(backbone.state_dict())
    backbone.train()
    try:
        yield
    finally:
        backbone.train(mode)
        backbone.load_state_dict(before)
