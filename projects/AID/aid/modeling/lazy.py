"""A student with its teachers as calls of functions, for Detectron2's LazyConfig."""

from torch import nn

from .meta_arch import DistillationMixin
from .schedule import Schedule
from .teacher import Teacher
from .weighting import Weighting

__all__ = ["distilled", "lesson"]


def lesson(
    *,
    teacher: Teacher,
    losses: list[nn.Module],
    weighting: Weighting,
    levels: list[str] = (),
    datasets: list[str] = (),
) -> dict:
    """What :meth:`DistillationMixin.learn_from` wants to know of a teacher.

    Args:
        teacher: see :func:`~aid.modeling.load_teacher`.
        losses: see DISTILLATION_LOSS_REGISTRY, of different classes, made for ``levels``.
        weighting: how much to believe the teacher.
        levels: to imitate; none: all that teacher and student share.
        datasets: that the student trains on, whose classes must be the teacher's.
    """
    return {
        "teacher": teacher,
        "losses": losses,
        "weighting": weighting,
        "levels": levels,
        "datasets": datasets,
    }


def distilled(
    *,
    student: DistillationMixin,
    lessons: list[dict],
    schedule: Schedule,
    weight: float = 1.0,
    balance: float = 0.0,
) -> DistillationMixin:
    """``student`` after :meth:`DistillationMixin.learn_from`.

    LazyConfig builds arguments in their order: the student has the weights that it has without a
    teacher if it comes first, the adapters those of a YAML config if each lesson names its teacher
    before its losses.

    Args:
        student, lessons, schedule, weight, balance: see there.

    Raises:
        AIDError: a teacher cannot teach this student.
    """
    student.learn_from(lessons, schedule, weight, balance)
    return student
