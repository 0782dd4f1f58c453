"""Whether a teacher can teach a student: the same classes, and levels that both have."""

import logging
from collections.abc import Iterable

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import nn

from ..errors import AIDError
from .teacher import Teacher

__all__ = ["check_match", "check_teacher", "num_classes"]


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
    ours, theirs = num_classes(student), num_classes(teacher.detector)
    if ours != theirs:
        raise AIDError(
            f"the teacher of {teacher.name} has {theirs} classes, the student {ours}: "
            "train both on the same class list"
        )
    datasets = tuple(datasets)
    ours, theirs = (_class_names(x) for x in (datasets, teacher.cfg.DATASETS.TRAIN))
    if ours and theirs and ours != theirs:
        raise AIDError(
            f"class lists differ: the teacher's datasets {tuple(teacher.cfg.DATASETS.TRAIN)} "
            f"({teacher.name}) have {theirs}, the student's {datasets} have {ours}"
        )
    if ours and not theirs and not set(teacher.cfg.DATASETS.TRAIN) <= set(datasets):
        logging.getLogger(__name__).warning(
            "The classes of the teacher's dataset %s are not known here: make sure that those of "
            "%s are the student's, in its order: %s",
            teacher.cfg.DATASETS.TRAIN[0],
            teacher.name,
            ", ".join(ours),
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
        ours, theirs = student_shapes[level].stride, teacher_shapes[level].stride
        if ours != theirs:
            raise AIDError(
                f"level {level}: stride {theirs} in the teacher, {ours} in the student; leave it "
                f"out of DISTILLATION.LEVELS ({teacher.name})"
            )
    return tuple(sorted(wanted, key=lambda level: student_shapes[level].stride))


def num_classes(detector: nn.Module) -> int:
    """Number of foreground classes of a Detectron2 detector."""
    return (
        detector.roi_heads.num_classes if hasattr(detector, "roi_heads") else detector.num_classes
    )


def _class_names(datasets: Iterable[str]) -> list[str] | None:
    """Class list of the first dataset, where it is registered and known without its files."""
    name = next(iter(datasets), None)
    return MetadataCatalog.get(name).get("thing_classes", None) if name else None
