"""One teacher of a student, with its distillation losses and its weighting rule."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from ..utils.errors import AIDError
from .detection_teacher import DetectionTeacher
from .families import (
    PairedPredictions,
    PerInstanceLosses,
    PredictionBatch,
    PredictionRequest,
    check_predictions,
    paired_predictions,
)
from .losses import Context, build_distillation_losses
from .losses.base import in_float32
from .placement import to_device
from .teacher import build_teacher
from .teacher_base import TeacherBase, TeacherView, resampled
from .teacher_check import check_teacher
from .teacher_keys import DETECTION_FILE, teacher_kinds
from .weighting import TeacherStats, Weighting, Weights, build_weighting

__all__ = ["Distiller", "TeacherOutput"]


@dataclass(frozen=True)
class TeacherOutput:
    """Output of a teacher on a batch.

    Attributes:
        view: its images and features.
        stats: the basis of its weights; None if the weighting rule needs none.
        weights: imitation weights, after mixing with those of the other teachers.
    """

    view: TeacherView
    stats: TeacherStats | None
    weights: Weights


class Distiller:
    """One teacher of a student, with its distillation losses and its weighting rule.

    It is no ``nn.Module``. The modules in it are submodules of the student, see
    :meth:`modules_by_name`.

    Attributes:
        teacher: the frozen detector.
        losses: the distillation losses, by name.
        weighting: the weighting rule.
        strides: {level: pixels per cell} of the levels to imitate, finest first.
        log_prefix: of the names in the log.
        request: predictions that the losses need; None if none.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: TeacherBase,
        losses: nn.ModuleDict,
        weighting: Weighting,
        levels: tuple[str, ...],
        number: int = 0,
    ):
        """
        Args:
            student: as Detectron2 built it.
            teacher: that fits ``student``, see :func:`check_match`.
            losses: made for these levels, by name; see DISTILLATION_LOSS_REGISTRY.
            weighting: rule for the weights of imitation.
            levels: to imitate, finest first.
            number: of the teacher, from 0. Modules, losses and log names of the first teacher have
                no number.

        Raises:
            AIDError: a loss needs predictions that teacher and student cannot both make, or losses
                or the weighting need more than the features or detections that a teacher gives.
        """
        self.teacher, self.losses, self.weighting = teacher, losses, weighting
        shapes = student.backbone.output_shape()
        self.strides = {level: shapes[level].stride for level in levels}
        teacher_shapes = teacher.output_shape()
        aligned = self.strides if teacher.has_features else {}
        self._ratios = {k: teacher_shapes[k].stride / v for k, v in aligned.items()}
        self.log_prefix = f"aid/teacher_{number}/" if number else "aid/"
        self._suffix = f"_{number}" if number else ""
        requests = {name: x.request for name, x in losses.items() if hasattr(x, "request")}
        if not teacher.has_heads:
            _check_features_suffice(teacher, requests, weighting)
        if not teacher.has_features:
            _check_predictions_suffice(teacher, losses, requests)
        for name, request in requests.items():
            check_predictions(teacher.detector, student, request, name)
        self.request = PredictionRequest.union(requests.values())

    @classmethod
    def from_config(cls, cfg: CfgNode, student: nn.Module, number: int = 0) -> "Distiller":
        """Build the distiller of a teacher that a student's config names.

        Args:
            cfg: the student's config.
            student: as Detectron2 built it.
            number: of the teacher, see :func:`build_teacher`.

        Raises:
            AIDError: the config names no usable teacher, weighting or loss; see ``config/keys.py``.
        """
        teacher: TeacherBase
        if teacher_kinds(cfg)[number] == DETECTION_FILE:  # the training loader reads the file
            teacher = DetectionTeacher(student, f"TEACHER.DETECTIONS {cfg.TEACHER.DETECTIONS}")
        else:
            teacher = build_teacher(cfg, number)
        levels = check_teacher(teacher, student, cfg)
        losses = build_distillation_losses(
            cfg, levels, student.backbone.output_shape(), teacher.output_shape()
        )
        return cls(student, teacher, losses, build_weighting(cfg), levels, number)

    def modules_by_name(self) -> dict[str, nn.Module]:
        """Losses and weighting by their names in the student's ``distillation``."""
        return {f"losses{self._suffix}": self.losses, f"weighting{self._suffix}": self.weighting}

    def __str__(self) -> str:
        class_map = self.teacher.class_map
        classes = f"; classes {class_map}" if class_map else ""
        return (
            f"teacher of {self.teacher.name} ({self.teacher.num_parameters / 1e6:.1f} M "
            f"parameters) with weights {self.teacher.weights}{classes}; levels "
            f"{', '.join(f'{k} (stride {v})' for k, v in self.strides.items())}; losses "
            f"{', '.join(f'{k}({v.extra_repr()})' for k, v in self.losses.items())}; "
            f"weighting {self.weighting}"
        )

    def stats(
        self, view: TeacherView, instances: list[Instances], student: PerInstanceLosses | None
    ) -> TeacherStats | None:
        """Losses and detection quality of the teacher on a batch, as the weighting needs them.

        Args:
            view: of the teacher.
            instances: ground truth of each image.
            student: the student's own losses, if the weighting needs them.
        """
        if not self.weighting.requires_stats:
            return None
        background = self.weighting.requires_background
        if self.request:  # the losses are computed, since the cache has no predictions
            view = replace(view, keys=[])
        losses = self.teacher.per_instance_losses(view, instances, background)
        stats = TeacherStats(losses, torch.cat([x.gt_classes for x in instances]), student)
        if self.weighting.requires_quality:
            stats.quality = self.teacher.quality(view, instances)
        return stats

    def weights(
        self,
        stats: TeacherStats | None,
        instances: list[Instances],
        levels: dict[str, tuple[tuple[int, int], int]],
    ) -> Weights:
        """Imitation weights of this teacher, ignoring the others.

        Args:
            stats: of :meth:`stats`.
            instances: ground truth of each image.
            levels: see :meth:`Weighting.forward`.
        """
        boxes = [x.gt_boxes.tensor for x in instances]
        weights = self.weighting(stats, boxes, levels)
        if self.request:
            weights.components = self.weighting.component_weights(stats, boxes)
        return weights

    def ignore_unknown_classes(self, weights: Weights, instances: list[Instances]) -> None:
        """Set the weights of predicted classes to 0 on instances whose class the teacher lacks.

        Args:
            weights: weights of ``instances``, changed in place.
            instances: ground truth or pseudo-labels of each image.
        """
        if weights.components is None:
            return
        has_class = self.teacher.has_class(instances)
        if has_class is not None:
            weights.components.cls = torch.where(has_class, weights.components.cls, 0.0)

    def aligned(self, view: TeacherView, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Resample the teacher's maps, if any, of the imitated levels at the student's cells.

        Args:
            view: view of the teacher.
            features: feature maps of the student.
        """
        return {
            level: resampled(
                to_device(view.features[level], features[level].device), ratio, features[level]
            )
            for level, ratio in self._ratios.items()
        }

    def predictions(
        self,
        student: nn.Module,
        batch: PredictionBatch,
        stats: TeacherStats | None,
        weights: Weights,
    ) -> PairedPredictions:
        """Predictions of teacher and student for the same samples, with imitation weights.

        Args:
            student: gradients flow into it.
            batch: features of both.
            stats: of the teacher on it.
            weights: of imitation.
        """
        components = weights.components
        assert self.request is not None and components is not None
        batch.teacher_predictions = stats and stats.teacher.predictions
        batch.teacher_precision = self.teacher.precision
        batch.targets = to_device(batch.targets, self.teacher.device)
        with EventStorage():  # the teacher's RPN writes a log
            pairs = paired_predictions(self.teacher.detector, student, self.request, batch)
        instance = {"cls": components.cls, "box": components.box}
        pairs.set_weights(instance, components.background)
        return pairs

    def terms(
        self,
        features: dict[str, Tensor],
        view: TeacherView,
        weights: Weights,
        context: Context,
    ) -> dict[str, Tensor]:
        """Distillation losses of a batch, in float32.

        Args:
            features: the student's.
            view: of the teacher.
            weights: of imitation.
            context: for the losses.

        Raises:
            AIDError: no loss returned a term, or a name is that of another one.
        """
        terms: dict[str, Tensor] = {}
        student, teacher = {}, {}
        if any(getattr(loss, "reads_features", True) for loss in self.losses.values()):
            # In half precision every loss would convert them again.
            student = in_float32({k: features[k] for k in self.strides})
            teacher = in_float32(self.aligned(view, features))
        for loss in self.losses.values():
            of_loss = loss(student, teacher, weights.maps, context)
            _check_names(of_loss, terms, type(loss).__name__)
            terms.update(of_loss)
        if not terms:
            raise AIDError(
                f"no distillation term came from {', '.join(self.losses)}: the student would train "
                "without its teacher; see DISTILLATION.LOSSES"
            )
        return {f"{name}{self._suffix}": term for name, term in terms.items()}


def _check_names(new: Iterable[str], known: Iterable[str], loss: str) -> None:
    """Refuse terms that would replace others in the sum of the losses."""
    for name in new:
        if not name.startswith("loss_distill") or name in known:
            raise AIDError(
                f"{loss} returns a term {name}: its name must start with loss_distill and differ "
                f"from those of the teacher's other losses, {', '.join(known) or 'none yet'}"
            )


def _check_features_suffice(
    teacher: TeacherBase, requests: Iterable[str], weighting: Weighting
) -> None:
    """Refuse losses and rules that need a teacher with heads.

    Args:
        requests: names of the losses that need predictions.
    """
    start = f"the teacher of {teacher.name} has no heads: "
    for name in requests:
        raise AIDError(f"{start}{name} needs predictions; name losses on features alone")
    if weighting.requires_stats and (weighting.requires_loss or weighting.requires_quality):
        raise AIDError(
            f"{start}{type(weighting).__name__} needs the teacher's loss D or detections; set "
            "AID.GRANULARITY to none, or AID.WEIGHTING to ConstantWeighting"
        )


def _check_predictions_suffice(
    teacher: TeacherBase, losses: Iterable[str], requests: Iterable[str]
) -> None:
    """Refuse losses that need features of a teacher that has none.

    Args:
        losses, requests: names of all losses, and of those that need predictions.
    """
    for name in losses:
        if name not in requests:
            raise AIDError(
                f"the teacher of {teacher.name} gives detections only: {name} needs features; set "
                "DISTILLATION.LOSSES to ResponseLoss"
            )
