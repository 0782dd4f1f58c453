"""One teacher with all that belongs to it."""

from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from ..errors import AIDError
from .instance_loss import InstanceLosses
from .losses import Context, build_distillation_losses
from .responses import Answers, Batch, Question, ask, check_answers
from .teacher import Teacher, TeacherView, build_teacher
from .teacher_check import check_teacher
from .weighting import Evidence, Weighting, Weights, build_weighting

__all__ = ["Judgement", "Lesson"]


@dataclass(frozen=True)
class Judgement:
    """What a teacher sees in a batch, and how much to believe it.

    Attributes:
        view: the teacher's images and features.
        evidence: that its weights come from; None where the weighting asks for none.
        weights: of imitation, shared with the other teachers.
    """

    view: TeacherView
    evidence: Evidence | None
    weights: Weights


class Lesson:
    """What a student takes from one teacher: its distillation losses, and how much to believe it.

    It is no ``nn.Module``: the adapters of the losses, and what the weighting remembers, are parts
    of the student.

    Attributes:
        teacher: the frozen detector.
        strides: {level: pixels per cell} of the levels to imitate, finest first.
        log_prefix: of what the log says of this teacher.
        question: what the losses ask of teacher and student; None if nothing.
    """

    def __init__(
        self,
        student: nn.Module,
        parts: nn.ModuleDict,
        number: int,
        teacher: Teacher,
        levels: tuple[str, ...],
        losses: nn.ModuleDict,
        weighting: Weighting,
    ):
        """
        Args:
            student: as Detectron2 built it.
            parts: of the student, to which this lesson adds its own.
            number: of the teacher, from 0. The names of the first one's parts, losses and log have
                no number.
            teacher: that can teach ``student``, see :func:`check_match`.
            levels: to imitate, finest first.
            losses: made for these levels, by name; see DISTILLATION_LOSS_REGISTRY.
            weighting: how much to believe ``teacher``.

        Raises:
            AIDError: a loss asks for what teacher and student cannot both answer.
        """
        self.teacher = teacher
        shapes = student.backbone.output_shape()
        self.strides = {level: shapes[level].stride for level in levels}
        self.log_prefix = f"aid/teacher_{number}/" if number else "aid/"
        self._suffix = f"_{number}" if number else ""
        self._parts = parts
        parts[f"losses{self._suffix}"] = losses
        parts[f"weighting{self._suffix}"] = weighting
        questions = {name: x.asks for name, x in self.losses.items() if hasattr(x, "asks")}
        for name, question in questions.items():
            check_answers(self.teacher.detector, student, question, name)
        self.question = Question.all_of(questions.values())

    @classmethod
    def from_config(
        cls, cfg: CfgNode, student: nn.Module, parts: nn.ModuleDict, number: int = 0
    ) -> "Lesson":
        """Build what a student's config asks for.

        Args:
            cfg: the student's config.
            student, parts: see :class:`Lesson`.
            number: of the teacher, see :func:`build_teacher`.

        Raises:
            AIDError: the config names no usable teacher, weighting or loss; see ``config/keys.py``.
        """
        teacher = build_teacher(cfg, number)
        levels = check_teacher(teacher, student, cfg)
        ours = student.backbone.output_shape()
        theirs = teacher.detector.backbone.output_shape()
        losses = build_distillation_losses(cfg, levels, ours, theirs)
        return cls(student, parts, number, teacher, levels, losses, build_weighting(cfg))

    @property
    def losses(self) -> nn.ModuleDict:
        """The distillation losses by name."""
        return self._parts[f"losses{self._suffix}"]

    @property
    def weighting(self) -> Weighting:
        return self._parts[f"weighting{self._suffix}"]

    def __str__(self) -> str:
        return (
            f"teacher of {self.teacher.name} ({self.teacher.num_parameters / 1e6:.1f} M "
            f"parameters) with weights {self.teacher.weights}; levels "
            f"{', '.join(f'{k} (stride {v})' for k, v in self.strides.items())}; losses "
            f"{', '.join(f'{k}({v.extra_repr()})' for k, v in self.losses.items())}; "
            f"weighting {self.weighting}"
        )

    def evidence(
        self, view: TeacherView, instances: list[Instances], student: InstanceLosses | None
    ) -> Evidence | None:
        """What the weighting asks to know of the teacher on a batch.

        Args:
            view: of the teacher.
            instances: ground truth of each image.
            student: the student's own losses, if the weighting needs them.
        """
        if not self.weighting.needs_evidence:
            return None
        losses = self.teacher.instance_losses(view, instances, self.weighting.needs_background)
        evidence = Evidence(losses, torch.cat([x.gt_classes for x in instances]), student)
        if self.weighting.needs_quality:
            evidence.quality = self.teacher.quality(view, instances)
        return evidence

    def weights(
        self,
        evidence: Evidence | None,
        boxes: list[Tensor],
        maps: dict[str, tuple[tuple[int, int], int]],
    ) -> Weights:
        """Of imitation, as if this teacher were the only one.

        Args:
            evidence: of :meth:`evidence`.
            boxes, maps: see :meth:`Weighting.forward`.
        """
        weights = self.weighting(evidence, boxes, maps)
        if self.question:
            weights.parts = self.weighting.by_part(evidence, boxes)
        return weights

    def answers(
        self, student: nn.Module, batch: Batch, evidence: Evidence | None, weights: Weights
    ) -> Answers:
        """What both sides say about the same samples, with the weights of their owners.

        Args:
            student: that is asked beside the teacher.
            batch: what both have seen.
            evidence: of the teacher on it.
            weights: of imitation.
        """
        batch.teacher_predictions = evidence and evidence.teacher.predictions
        with EventStorage():  # the teacher's RPN writes a log
            answers = ask(self.teacher.detector, student, self.question, batch)
        parts = weights.parts
        instance = {"all": weights.boxes, "cls": parts.cls, "box": parts.box}
        answers.weigh(instance, parts.background)
        return answers

    def terms(
        self,
        features: dict[str, Tensor],
        view: TeacherView,
        weights: Weights,
        context: Context,
    ) -> dict[str, Tensor]:
        """The distillation losses of a batch, in float32.

        Args:
            features: the student's.
            view: of the teacher.
            weights: of imitation.
            context: for the losses.

        Raises:
            AIDError: there is none.
        """
        terms = {}
        ours, theirs = ({k: x[k] for k in self.strides} for x in (features, view.features))
        for loss in self.losses.values():
            terms.update(loss(ours, theirs, weights.maps, context))
        if not terms:
            raise AIDError(
                f"no distillation term came from {', '.join(self.losses)}: the student would train "
                "without its teacher; see DISTILLATION.LOSSES"
            )
        return {f"{name}{self._suffix}": term for name, term in terms.items()}
