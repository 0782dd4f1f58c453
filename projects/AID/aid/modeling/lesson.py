"""One teacher with all that belongs to it."""

import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
from torch import Tensor, nn

from ..errors import AIDError
from .instance_loss import InstanceLosses
from .losses import Context, Responses, build_distillation_losses
from .responses import box_logits, check_answers
from .teacher import TeacherView, build_teacher
from .teacher_check import check_teacher
from .weighting import Evidence, Weighting, Weights, build_weighting

__all__ = ["Lesson"]


class Lesson:
    """What a student takes from one teacher: its distillation losses, and how much to believe it.

    It is no ``nn.Module``: the adapters of the losses, and what the weighting remembers, are parts
    of the student.

    Attributes:
        teacher: the frozen detector.
        strides: {level: pixels per cell} of the levels to imitate, finest first.
        log_prefix: of what the log says of this teacher.
    """

    def __init__(self, cfg: CfgNode, student: nn.Module, parts: nn.ModuleDict, number: int = 0):
        """
        Args:
            cfg: the student's config.
            student: as Detectron2 built it.
            parts: of the student, to which this lesson adds its own.
            number: of the teacher, see :func:`build_teacher`. The names of the first one's parts,
                losses and log have no number.

        Raises:
            AIDError: the config names no usable teacher, weighting or loss; see ``config.py``.
        """
        self.teacher = build_teacher(cfg, number)
        levels = check_teacher(self.teacher, student, cfg)
        ours = student.backbone.output_shape()
        theirs = self.teacher.detector.backbone.output_shape()
        self.strides = {level: ours[level].stride for level in levels}
        self.log_prefix = f"aid/teacher_{number}/" if number else "aid/"
        self._suffix = f"_{number}" if number else ""
        self._parts = parts
        parts[f"losses{self._suffix}"] = build_distillation_losses(cfg, levels, ours, theirs)
        parts[f"weighting{self._suffix}"] = build_weighting(cfg)
        self.needs_responses = any(
            getattr(x, "needs_responses", False) for x in self.losses.values()
        )
        if self.needs_responses:
            check_answers(student, "student")
            check_answers(self.teacher.detector, "teacher")

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

    def responses(
        self,
        student: nn.Module,
        features: dict[str, Tensor],
        view: TeacherView,
        instances: list[Instances],
        weights: Weights,
    ) -> Responses | None:
        """What both sides say about the ground-truth boxes, if a loss asks for it."""
        if not self.needs_responses:
            return None
        boxes = [x.gt_boxes for x in instances]
        ours = box_logits(student, features, boxes)
        with torch.no_grad():
            theirs = box_logits(self.teacher.detector, view.features, boxes)
        return Responses(ours, theirs, weights.boxes)

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
        # Norms over a whole map overflow in half precision.
        with torch.autocast(next(iter(features.values())).device.type, enabled=False):
            ours = {level: features[level].float() for level in self.strides}
            theirs = {level: view.features[level].float() for level in self.strides}
            for loss in self.losses.values():
                terms.update(loss(ours, theirs, weights.maps, context))
        if not terms:
            raise AIDError(
                f"no distillation term came from {', '.join(self.losses)}: the student would train "
                "without its teacher; see DISTILLATION.LOSSES"
            )
        return {f"{name}{self._suffix}": term for name, term in terms.items()}
