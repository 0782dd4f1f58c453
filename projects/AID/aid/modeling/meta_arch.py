"""Students: Detectron2's detectors with teachers beside them while they train."""

import logging

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, RetinaNet
from detectron2.structures import ImageList, Instances
from detectron2.utils.events import EventStorage, get_event_storage
from torch import Tensor, nn

from ..errors import AIDError
from .balance import Balance
from .comparison import in_eval_mode
from .diagnostics import log_distillation_weight, log_weights
from .fcos import FCOS
from .gfl import GFL
from .instance_loss import InstanceLosses, instance_losses, loss_levels
from .lesson import Judgement, Lesson
from .losses import Context
from .responses import Batch, Branches, tap_branches
from .schedule import Schedule
from .teacher import Teacher, num_teachers
from .teacher_check import check_match
from .weighting import Sharing, Weighting

__all__ = ["AIDFCOS", "AIDGFL", "AIDGeneralizedRCNN", "AIDRetinaNet", "DistillationMixin"]


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
        self.lessons: list[Lesson] = []

    @property
    def teacher(self) -> Teacher:
        """The first of them."""
        return self.lessons[0].teacher

    @property
    def weighting(self) -> Weighting:
        """Of the first teacher; the others have the same rule."""
        return self.lessons[0].weighting

    @property
    def distillation_factor(self) -> float:
        """What the schedule multiplies DISTILLATION.WEIGHT by at this iteration of a training."""
        return self.schedule(get_event_storage().iter)

    def attach_distillation(self, cfg: CfgNode) -> None:
        """Build the teachers, and the weighting rule and distillation losses of each; say which.

        The random numbers that the student and its training draw afterwards are those they would
        draw without a teacher.

        Args:
            cfg: the student's config.

        Raises:
            AIDError: the config names no usable teacher, weighting or loss; see ``config/keys.py``.
        """
        schedule = Schedule(cfg)
        with torch.random.fork_rng([] if self.device.type == "cpu" else [self.device]):
            parts = nn.ModuleDict()
            teachers = range(num_teachers(cfg))
            lessons = [Lesson.from_config(cfg, self, parts, k) for k in teachers]
        keys = cfg.DISTILLATION
        self._learn(lessons, parts, schedule, keys.WEIGHT, keys.BALANCE)

    def learn_from(
        self, lessons: list[dict], schedule: Schedule, weight: float = 1.0, balance: float = 0.0
    ) -> None:
        """As :meth:`attach_distillation`, from objects in place of a config.

        Args:
            lessons: what :func:`~aid.modeling.lazy.lesson` says of each teacher.
            schedule: when imitation acts.
            weight: lambda of the paper.
            balance: see DISTILLATION.BALANCE.

        Raises:
            AIDError: a teacher cannot teach this student, or has two losses of one class.
        """
        parts, made = nn.ModuleDict(), []
        for number, x in enumerate(lessons):
            levels = check_match(x["teacher"], self, x["levels"], x["datasets"])
            losses = nn.ModuleDict({type(loss).__name__: loss for loss in x["losses"]})
            if len(losses) < len(x["losses"]):
                names = ", ".join(type(loss).__name__ for loss in x["losses"])
                raise AIDError(f"losses of one teacher, {names}: name each class once")
            made.append(Lesson(self, parts, number, x["teacher"], levels, losses, x["weighting"]))
        self._learn(made, parts, schedule, weight, balance)

    def _learn(
        self,
        lessons: list[Lesson],
        parts: nn.ModuleDict,
        schedule: Schedule,
        weight: float,
        balance: float,
    ) -> None:
        self.lessons, self.schedule, self.distillation_weight = lessons, schedule, weight
        if balance != 0:
            parts["balance"] = Balance(balance)
        self.distillation = parts.to(self.device)
        if self.weighting.needs_student:
            loss_levels(self)  # an error now if it has none
        logging.getLogger(__name__).info(
            "Distillation: lambda %g, %s, %s; %s",
            weight,
            f"gradient {balance:g} times the task's"
            if balance
            else "losses by their weights alone",
            schedule,
            "; ".join(str(lesson) for lesson in lessons),
        )
        self.sharing = Sharing([lesson.weighting for lesson in lessons])

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
        # A dense head's work is not done twice.
        dense = getattr(self, "head", nn.Identity())
        asked = [lesson.question.cross_convs for lesson in self.lessons if lesson.question]
        with (
            _Tap(self.backbone) as tap,
            _Tap(dense) as head,
            tap_branches(dense, asked) as branches,
        ):
            losses = super().forward(batched_inputs)
        factor = self.distillation_factor
        if factor == 0:
            log_distillation_weight(0.0)
            return {**losses, **self._pause()}
        terms = self._distill(batched_inputs, tap.input, tap.output, head.output, branches)
        weighted = self._weighted(terms, self.distillation_weight * factor, tap.output)
        return {**losses, **weighted}

    @property
    def balance(self) -> Balance | None:
        """What sets the strength of imitation; None where it is DISTILLATION.WEIGHT's alone."""
        parts = self.distillation
        return None if parts is None or "balance" not in parts else parts["balance"]

    def _weighted(
        self, terms: dict[str, Tensor], weight: float, features: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """The losses of imitation by their strength at this iteration."""
        balance = self.balance
        if balance is None:
            log_distillation_weight(weight)
            return {name: weight * term for name, term in terms.items()}
        iteration = get_event_storage().iter
        balance.update(iteration)
        strength = weight * balance.factor
        log_distillation_weight(strength)
        weighted = {name: strength * term for name, term in terms.items()}
        if balance.is_due(iteration):
            levels = dict.fromkeys(level for lesson in self.lessons for level in lesson.strides)
            maps = [features[level] for level in levels]
            one = next(iter(weighted.values()))
            balance.measure(sum(terms.values()), one, strength, maps, iteration)
        return weighted

    def _pause(self) -> dict[str, Tensor]:
        """A loss of 0 by which the adapters have gradients of 0: DDP waits for them."""
        nothing = [p.flatten()[:0].sum() for p in self.distillation.parameters()]
        return {"loss_distill_paused": sum(nothing)} if nothing else {}

    def _distill(
        self,
        batched_inputs: list[dict],
        images: Tensor,
        features: dict[str, Tensor],
        predictions: object,
        branches: dict[int, Branches],
    ) -> dict[str, Tensor]:
        instances = [x["instances"].to(self.device) for x in batched_inputs]
        terms = {}
        judgements = self.judge(batched_inputs, instances, images, features)
        for lesson, judgement in zip(self.lessons, judgements, strict=True):
            view, weights = judgement.view, judgement.weights
            log_weights(
                lesson.log_prefix,
                weights,
                batched_inputs,
                lesson.strides,
                self.input_format,
                self.vis_period,
            )
            context = Context(instances, lesson.strides)
            if lesson.question:
                batch = Batch(view.images, view.features, features, instances, predictions)
                batch.student_branches = branches
                context.answers = lesson.answers(self, batch, judgement.evidence, weights)
            terms.update(lesson.terms(features, view, weights, context))
        return terms

    def judge(
        self,
        batched_inputs: list[dict],
        instances: list[Instances],
        images: Tensor,
        features: dict[str, Tensor],
    ) -> list[Judgement]:
        """What each teacher sees in a batch, and how much to believe it beside the others.

        Args:
            batched_inputs: the standard input of a Detectron2 model.
            instances: its ground truth, on the student's device.
            images: (N, 3, H, W), the batch as the student preprocesses and pads it.
            features: the student's, of ``images``.
        """
        boxes = [x.gt_boxes.tensor for x in instances]
        own = None
        if self.weighting.needs_evidence and self.weighting.needs_student:
            sizes = [tuple(x["image"].shape[-2:]) for x in batched_inputs]
            own = self._own_losses(ImageList(images, sizes), features, instances)
        views, evidence, weights = [], [], []
        for lesson in self.lessons:
            lesson.teacher.follow(self.device)
            size = tuple(images.shape[-2:])
            view = lesson.teacher.view(batched_inputs, size, self.input_format)
            known = lesson.evidence(view, instances, own)
            maps = {k: (tuple(features[k].shape[-2:]), v) for k, v in lesson.strides.items()}
            views.append(view)
            evidence.append(known)
            weights.append(lesson.weights(known, boxes, maps))
        return list(map(Judgement, views, evidence, self.sharing(weights)))

    @torch.no_grad()
    def _own_losses(
        self, images: ImageList, features: dict[str, Tensor], instances: list[Instances]
    ) -> InstanceLosses:
        """The student's own loss on every instance, taken as the teacher's is: in eval mode."""
        with in_eval_mode(self), EventStorage():
            background = self.weighting.needs_background
            return instance_losses(self, images, features, instances, background)


class _Tap:
    """Keeps what goes into and comes out of a module while it is entered."""

    def __init__(self, module: nn.Module):
        self._module = module
        self.input = self.output = None

    def __enter__(self) -> "_Tap":
        self._handle = self._module.register_forward_hook(self._keep)
        return self

    def __exit__(self, *exc_info) -> None:
        self._handle.remove()

    def _keep(self, module: nn.Module, inputs: tuple, output: object) -> None:
        self.input = inputs[0]
        self.output = output


@META_ARCH_REGISTRY.register()
class AIDGeneralizedRCNN(DistillationMixin, GeneralizedRCNN):
    """Faster, Mask or Cascade R-CNN that learns from teachers."""


@META_ARCH_REGISTRY.register()
class AIDRetinaNet(DistillationMixin, RetinaNet):
    """RetinaNet that learns from teachers."""


@META_ARCH_REGISTRY.register()
class AIDGFL(DistillationMixin, GFL):
    """GFL that learns from teachers."""


@META_ARCH_REGISTRY.register()
class AIDFCOS(DistillationMixin, FCOS):
    """FCOS that learns from teachers."""
