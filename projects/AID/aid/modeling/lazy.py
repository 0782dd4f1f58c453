"""Functions that build a student with teachers from Detectron2's LazyConfig."""

from collections.abc import Sequence

from torch import nn

from ..utils.errors import AIDError
from .distiller import Distiller
from .losses.base import channels_of
from .meta_arch import DistillationMixin
from .schedule import Schedule
from .teacher_base import TeacherBase
from .teacher_check import check_match
from .weighting import Weighting

__all__ = ["build_distilled", "distiller"]


def distiller(
    *,
    teacher: TeacherBase,
    losses: list[nn.Module],
    weighting: Weighting,
    levels: Sequence[str] = (),
    datasets: Sequence[str] = (),
) -> dict:
    """Arguments of a :class:`Distiller` for :func:`build_distilled`, which adds the student.

    Args:
        teacher: see :func:`~aid.modeling.load_teacher` and
            :func:`~aid.modeling.load_feature_teacher`.
        losses: distillation losses of different classes, built for ``levels``; see
            DISTILLATION_LOSS_REGISTRY.
        weighting: rule for the imitation weights.
        levels: levels to imitate; by default all that teacher and student have.
        datasets: training and test datasets of the student; their classes must be the teacher's.
    """
    return {
        "teacher": teacher,
        "losses": losses,
        "weighting": weighting,
        "levels": levels,
        "datasets": datasets,
    }


def build_distilled(
    *,
    student: DistillationMixin,
    distillers: list[dict],
    schedule: Schedule,
    weight: float = 1.0,
    balance: float = 0.0,
) -> DistillationMixin:
    """Attach teachers to a student; see :meth:`DistillationMixin.set_distillers`.

    LazyConfig builds arguments in their order, which determines the random initial weights. If the
    student comes first, it has the same as without a teacher; if each distiller names its teacher
    before its losses, the adapters have the same as with a YAML config.

    Args:
        student: as LazyConfig built it.
        distillers: output of :func:`distiller` for each teacher.
        schedule, weight, balance: see :meth:`DistillationMixin.set_distillers`.

    Raises:
        AIDError: a teacher does not fit this student, or its losses do not, or two are of one
            class.
    """
    built = []
    for number, x in enumerate(distillers):
        levels = check_match(x["teacher"], student, x["levels"], x["datasets"])
        losses = _by_class(x["losses"])
        _check_channels(losses, levels, student, x["teacher"])
        built.append(Distiller(student, x["teacher"], losses, x["weighting"], levels, number))
    student.set_distillers(built, schedule, weight, balance)
    return student


def _check_channels(
    losses: nn.ModuleDict, levels: tuple[str, ...], student: nn.Module, teacher: TeacherBase
) -> None:
    """Check that losses were built for the levels to imitate, and their channels.

    Raises:
        AIDError: one was not.
    """
    for name, loss in losses.items():
        channels = getattr(loss, "channels", None)
        if channels is None:
            continue
        expected = channels_of(levels, student.backbone.output_shape(), teacher.output_shape())
        if {k: tuple(x) for k, x in channels.items()} != expected:
            raise AIDError(
                f"{name} has channels {dict(channels)}, but the levels to imitate, with channels "
                f"of student and teacher, are {expected}: set channels or levels"
            )


def _by_class(losses: list[nn.Module]) -> nn.ModuleDict:
    """Losses by the name of their class.

    Raises:
        AIDError: two of one class.
    """
    by_class = nn.ModuleDict({type(loss).__name__: loss for loss in losses})
    if len(by_class) < len(losses):
        names = ", ".join(type(loss).__name__ for loss in losses)
        raise AIDError(f"losses of one teacher, {names}: name each class once")
    return by_class
