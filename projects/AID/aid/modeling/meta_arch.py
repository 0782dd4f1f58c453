"""Students: Detectron2's detectors with a teacher beside them while they train."""

import logging

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, RetinaNet
from detectron2.structures import ImageList, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from ..errors import AIDError
from .comparison import in_eval_mode
from .diagnostics import log_weights
from .instance_loss import InstanceLosses, instance_losses, loss_levels
from .lesson import Lesson
from .losses import Context
from .teacher import Teacher
from .weighting import Weighting

__all__ = ["AIDGeneralizedRCNN", "AIDRetinaNet", "DistillationMixin"]


class DistillationMixin:
    """Distillation for a Detectron2 meta-architecture, to be named before it among the bases.

    The student is built as Detectron2 builds it and is nothing else until
    :meth:`attach_distillation`: inference and evaluation need no teacher. Its parameters keep
    Detectron2's names; the adapters of the distillation losses and what the weighting remembers
    are ``distillation.*``.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.distillation: nn.ModuleDict | None = None
        self.lesson: Lesson | None = None

    @property
    def teacher(self) -> Teacher:
        return self.lesson.teacher

    @property
    def weighting(self) -> Weighting:
        return self.lesson.weighting

    def attach_distillation(self, cfg: CfgNode) -> None:
        """Build the teacher, the weighting rule and the distillation losses, and say which.

        The random numbers that the student and its training draw afterwards are those they would
        draw without a teacher.

        Args:
            cfg: the student's config.

        Raises:
            AIDError: the config names no usable teacher, weighting or loss; see ``config.py``.
        """
        with torch.random.fork_rng([] if self.device.type == "cpu" else [self.device]):
            self.distillation = nn.ModuleDict()
            self.lesson = Lesson(cfg, self, self.distillation)
            self.distillation.to(self.device)
        if self.weighting.needs_student:
            loss_levels(self)  # an error now if it has none
        self.distillation_weight = cfg.DISTILLATION.WEIGHT
        logging.getLogger(__name__).info(
            "Distillation: lambda %g; %s", self.distillation_weight, self.lesson
        )

    def forward(self, batched_inputs: list[dict]):
        """In eval mode the detector's own forward. In training its losses and those of imitation.

        Args:
            batched_inputs: the standard input of a Detectron2 model.

        Returns:
            In training {name: scalar}; all of them are added up by the trainer.

        Raises:
            AIDError: training without :meth:`attach_distillation`.
        """
        if not self.training:
            return super().forward(batched_inputs)
        if self.distillation is None:
            raise AIDError(
                f"{type(self).__name__} has no teacher: call attach_distillation(cfg) before "
                "training, or train with aid.engine.AIDTrainer"
            )
        with _Tap(self.backbone) as tap:
            losses = super().forward(batched_inputs)
        losses.update(self._distill(batched_inputs, tap.images, tap.features))
        return losses

    def _distill(
        self, batched_inputs: list[dict], images: Tensor, features: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        lesson, instances = self.lesson, [x["instances"].to(self.device) for x in batched_inputs]
        lesson.teacher.follow(self.device)
        view = lesson.teacher.view(batched_inputs, tuple(images.shape[-2:]), self.input_format)
        own = None
        if self.weighting.needs_evidence and self.weighting.needs_student:
            own = self._own_losses(ImageList(images, view.images.image_sizes), features, instances)
        evidence = lesson.evidence(view, instances, own)
        maps = {k: (tuple(features[k].shape[-2:]), v) for k, v in lesson.strides.items()}
        weights = self.weighting(evidence, [x.gt_boxes.tensor for x in instances], maps)
        log_weights(weights, batched_inputs, lesson.strides, self.input_format, self.vis_period)
        context = Context(instances, lesson.strides)
        context.responses = lesson.responses(self, features, view, instances, weights)
        terms = lesson.terms(features, view, weights, context)
        return {name: self.distillation_weight * term for name, term in terms.items()}

    @torch.no_grad()
    def _own_losses(
        self, images: ImageList, features: dict[str, Tensor], instances: list[Instances]
    ) -> InstanceLosses:
        """The student's own loss on every instance, taken as the teacher's is: in eval mode."""
        with in_eval_mode(self), EventStorage():
            background = self.weighting.needs_background
            return instance_losses(self, images, features, instances, background)


class _Tap:
    """Keeps what goes into and comes out of a backbone while it is entered."""

    def __init__(self, backbone: nn.Module):
        self._backbone = backbone

    def __enter__(self) -> "_Tap":
        self._handle = self._backbone.register_forward_hook(self._keep)
        return self

    def __exit__(self, *exc_info) -> None:
        self._handle.remove()

    def _keep(self, module: nn.Module, inputs: tuple, output: dict[str, Tensor]) -> None:
        self.images = inputs[0]
        self.features = output


@META_ARCH_REGISTRY.register()
class AIDGeneralizedRCNN(DistillationMixin, GeneralizedRCNN):
    """Faster, Mask or Cascade R-CNN that learns from a teacher."""


@META_ARCH_REGISTRY.register()
class AIDRetinaNet(DistillationMixin, RetinaNet):
    """RetinaNet that learns from a teacher."""
