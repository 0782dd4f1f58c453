"""Checks that a teacher fits its student, and a comparison of both by their task losses.

Shape letters: G ground-truth instances of the batch.
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from ..utils.errors import AIDError
from .families import PerInstanceLosses, loss_levels, num_classes, per_instance_losses
from .teacher import Teacher

__all__ = [
    "are_comparable",
    "check_match",
    "check_teacher",
    "compare",
    "in_eval_mode",
]


def check_teacher(teacher: Teacher, student: nn.Module, cfg: CfgNode) -> tuple[str, ...]:
    """:func:`check_match` for DISTILLATION.LEVELS and DATASETS.TRAIN of the student's config."""
    return check_match(teacher, student, cfg.DISTILLATION.LEVELS, cfg.DATASETS.TRAIN)


def check_match(
    teacher: Teacher, student: nn.Module, levels: Iterable[str] = (), datasets: Iterable[str] = ()
) -> tuple[str, ...]:
    """Check that ``teacher`` can teach ``student``; warn where class lists cannot be compared.

    Args:
        teacher: frozen.
        student: as Detectron2 built it.
        levels: to imitate; none: all that the two share.
        datasets: that the student trains on.

    Returns:
        The levels to imitate, finest first.

    Raises:
        AIDError: classes, levels or strides differ.
    """
    of_student, of_teacher = num_classes(student), num_classes(teacher.detector)
    if of_student != of_teacher:
        raise AIDError(
            f"the teacher of {teacher.name} has {of_teacher} classes, the student {of_student}: "
            "train both on the same class list"
        )
    datasets = tuple(datasets)
    of_student, of_teacher = (_class_names(x) for x in (datasets, teacher.cfg.DATASETS.TRAIN))
    if of_student and of_teacher and of_student != of_teacher:
        raise AIDError(
            f"class lists differ: the teacher's datasets {tuple(teacher.cfg.DATASETS.TRAIN)} "
            f"({teacher.name}) have {of_teacher}, the student's {datasets} have {of_student}"
        )
    if of_student and not of_teacher and not set(teacher.cfg.DATASETS.TRAIN) <= set(datasets):
        logging.getLogger(__name__).warning(
            "The classes of the teacher's dataset %s are not known here: make sure that those of "
            "%s are the student's, in its order: %s",
            teacher.cfg.DATASETS.TRAIN[0],
            teacher.name,
            ", ".join(of_student),
        )
    student_shapes = student.backbone.output_shape()
    teacher_shapes = teacher.detector.backbone.output_shape()
    shared = [level for level in teacher.levels if level in student_shapes]
    wanted = list(levels) or shared
    missing = [level for level in wanted if level not in shared]
    if missing or not wanted:
        raise AIDError(
            f"DISTILLATION.LEVELS: no common level {', '.join(missing)}: the teacher's heads read "
            f"{', '.join(teacher.levels)} ({teacher.name}), the student's backbone gives "
            f"{', '.join(student_shapes)}"
        )
    for level in wanted:
        of_student, of_teacher = student_shapes[level].stride, teacher_shapes[level].stride
        if of_student != of_teacher:
            raise AIDError(
                f"level {level}: stride {of_teacher} in the teacher, {of_student} in the student; "
                f"leave it out of DISTILLATION.LEVELS ({teacher.name})"
            )
    return tuple(sorted(wanted, key=lambda level: student_shapes[level].stride))


def _class_names(datasets: Iterable[str]) -> list[str] | None:
    """Class list of the first dataset, where it is registered and known without its files."""
    name = next(iter(datasets), None)
    return MetadataCatalog.get(name).get("thing_classes", None) if name else None


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode inside the context, and restore the mode of every module after."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def are_comparable(*detectors: nn.Module) -> bool:
    """Whether the losses of detectors can be compared; focal losses and cross-entropies cannot."""
    try:
        for detector in detectors:
            loss_levels(detector)
    except AIDError:  # a student may be of any kind
        return False
    return len({per_instance_losses.dispatch(type(detector)) for detector in detectors}) == 1


@torch.no_grad()
def compare(
    student: nn.Module, teachers: list[Teacher], batched_inputs: list[dict]
) -> tuple[Tensor, ...]:
    """Losses of a student and of its teachers on every instance, all in eval mode.

    They are losses on samples that are the same for all, plus the mean over background anchors. The
    student and all random numbers are left as they were.

    Args:
        student: comparable to each teacher by :func:`are_comparable`.
        teachers: of the student.
        batched_inputs: the standard input of a Detectron2 model.

    Returns:
        (G,) of each teacher, and of the student at the end.
    """
    targets = [x["instances"].to(student.device) for x in batched_inputs]
    # In full precision: older versions of torch keep weights that were cast without gradient, and
    # the student's training would find them in autocast's cache.
    with torch.autocast(student.device.type, enabled=False), in_eval_mode(student), EventStorage():
        images = student.preprocess_image(batched_inputs)
        size, losses = tuple(images.tensor.shape[-2:]), []
        for teacher in teachers:
            teacher.follow(student.device)
            view = teacher.view(batched_inputs, size, student.input_format)
            losses.append(teacher.per_instance_losses(view, targets, background=False))
        features = student.backbone(images.tensor)
        losses.append(per_instance_losses(student, images, features, targets, background=False))
    return tuple(map(_comparable, losses))


def _comparable(losses: PerInstanceLosses) -> Tensor:
    """Losses (G,) without the box loss on a two-stage detector's own proposals.

    The proposals of an untrained detector match no instance. Its box loss is then taken on the
    ground-truth box alone, where the right prediction is not to move it.
    """
    two_stage = "rpn_cls" in losses.components
    components = [v for k, v in losses.components.items() if not two_stage or k != "box"]
    return sum(components) + losses.background["rpn_cls" if two_stage else "cls"].mean()
