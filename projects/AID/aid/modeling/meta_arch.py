"""Students: Detectron2's detectors, which learn from teachers while they train."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, RetinaNet
from detectron2.structures import ImageList, Instances
from detectron2.utils.events import EventStorage, get_event_storage
from torch import Tensor, nn

from ..utils.errors import AIDError, check_not_negative
from .balance import Balance, GradientRatio
from .detectors import FCOS, GFL
from .diagnostics import log_distillation_weight, log_pseudo_labels, log_weights
from .distiller import Distiller, TeacherOutput
from .families import (
    Branches,
    PerInstanceLosses,
    PredictionBatch,
    loss_levels,
    per_instance_losses,
    tap_branches,
)
from .losses import Context
from .pseudo_labels import PseudoLabels, is_unlabeled, warn_of_unknown_classes
from .schedule import Schedule
from .teacher_base import TeacherBase, TeacherView
from .teacher_check import in_eval_mode
from .teacher_keys import teacher_kinds
from .weighting import TeacherMixing, Weighting, Weights

__all__ = [
    "AIDFCOS",
    "AIDGFL",
    "AIDGeneralizedRCNN",
    "AIDRetinaNet",
    "DistillationMixin",
    "plain_architecture",
]


if TYPE_CHECKING:
    from torch.nn import Module as _Detector  # the meta-architecture that follows the mixin
else:
    _Detector = object


class DistillationMixin(_Detector):
    """Distillation for a Detectron2 meta-architecture, which follows it among the bases.

    The student is exactly the detector that Detectron2 builds until :meth:`build_distillation` is
    called: inference and evaluation need no teacher. Its parameters keep Detectron2's names. The
    adapters of the distillation losses and the state of weighting rules are ``distillation.*``.

    Attributes:
        plain_architecture: name of the detector's own meta-architecture.
        distillation: modules of the distillers and the balance; None before they are built.
        distillers: one for each teacher.
        mixing, schedule, distillation_weight: see :meth:`set_distillers`, which sets them.
        pseudo_labels: rule for images without labels.
        is_plain: whether it runs :meth:`as_plain_detector`.
        gradient_ratio: measures each forward pass if there is no balance; None to measure none.
    """

    plain_architecture: str

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        after = cls.__mro__[cls.__mro__.index(DistillationMixin) + 1]
        cls.plain_architecture = after.__name__

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.distillation: nn.ModuleDict | None = None
        self.distillers: list[Distiller] = []
        self.pseudo_labels = PseudoLabels()
        self.is_plain = False
        self.gradient_ratio: GradientRatio | None = None

    @contextmanager
    def as_plain_detector(self) -> Iterator[None]:
        """Train-mode forward passes without teachers, which change no state of the distillation."""
        self.is_plain = True
        if self.distillation is not None:
            self.distillation.eval()
        try:
            yield
        finally:
            self.is_plain = False
            if self.distillation is not None:
                self.distillation.train(self.training)

    @property
    def teacher(self) -> TeacherBase:
        """The first teacher."""
        return self.distillers[0].teacher

    @property
    def weighting(self) -> Weighting:
        """Weighting rule of the first teacher; the others have the same class and granularity."""
        return self.distillers[0].weighting

    @property
    def distillation_factor(self) -> float:
        """Factor of the schedule on DISTILLATION.WEIGHT at the current iteration."""
        return self.schedule(get_event_storage().iter)

    @property
    def balance(self) -> Balance | None:
        """Balance of gradients; None if DISTILLATION.WEIGHT alone sets the strength."""
        modules = self.distillation
        return None if modules is None or "balance" not in modules else modules["balance"]

    def build_distillation(self, cfg: CfgNode) -> None:
        """Build the teachers, and the weighting rule and distillation losses of each, and log them.

        The random numbers that the student and its training draw afterwards are those of a training
        without a teacher.

        Args:
            cfg: the student's config.

        Raises:
            AIDError: the config names no usable teacher, weighting or loss; see ``config/keys.py``.
        """
        schedule = Schedule(cfg)
        self.pseudo_labels = PseudoLabels(cfg)
        with torch.random.fork_rng([] if self.device.type == "cpu" else [self.device]):
            numbers = range(len(teacher_kinds(cfg)))
            distillers = [Distiller.from_config(cfg, self, number) for number in numbers]
        if cfg.UNLABELED.SHARE > 0:
            warn_of_unknown_classes(distillers[0].teacher)
        keys = cfg.DISTILLATION
        self.set_distillers(distillers, schedule, keys.WEIGHT, keys.BALANCE)

    def set_distillers(
        self,
        distillers: list[Distiller],
        schedule: Schedule,
        weight: float = 1.0,
        balance: float = 0.0,
    ) -> None:
        """Attach teachers that are built already; see :meth:`build_distillation`.

        Args:
            distillers: one for each teacher, made for this student and numbered from 0.
            schedule: iterations at which the student imitates.
            weight: lambda of the paper.
            balance: see DISTILLATION.BALANCE.

        Raises:
            AIDError: no teacher, two with one number, or with different weighting rules; a negative
                weight or balance; or a weighting rule that does not fit this student.
        """
        check_not_negative("DISTILLATION.WEIGHT", weight)
        descriptions = "; ".join(str(distiller) for distiller in distillers)
        self.mixing = TeacherMixing([distiller.weighting for distiller in distillers])
        self.distillers, self.schedule, self.distillation_weight = distillers, schedule, weight
        modules = nn.ModuleDict()
        for distiller in distillers:
            own = distiller.modules_by_name()
            if not modules.keys().isdisjoint(own):  # its losses would not be trained
                raise AIDError(
                    f"two teachers have one number, with the modules {', '.join(own)}: number the "
                    "distillers from 0"
                )
            modules.update(own)
        if balance != 0:
            modules["balance"] = Balance(balance)
        self.distillation = modules.to(self.device)
        if self.weighting.requires_student:
            try:
                loss_levels(self)
            except AIDError as error:
                rule = type(self.weighting).__name__
                raise AIDError(f"{rule} needs losses of the student: {error}") from None
        logging.getLogger(__name__).info(
            "Distillation: lambda %g, %s, %s; %s",
            weight,
            f"gradient {balance:g} times the task's"
            if balance
            else "losses by their weights alone",
            schedule,
            descriptions,
        )

    def forward(self, batched_inputs: list[dict]) -> Any:
        """Detections in eval mode; in training the detector's losses and the distillation losses.

        Args:
            batched_inputs: the standard input of a Detectron2 model. In training, samples may be
                unlabeled, see :func:`is_unlabeled`; while the schedule pauses, these are left out.

        Returns:
            In training {name: scalar}; the trainer sums all of them.

        Raises:
            AIDError: training without :meth:`build_distillation`.
        """
        if not self.training or self.is_plain:
            return super().forward(batched_inputs)
        if self.distillation is None:
            raise AIDError(
                f"{type(self).__name__} has no teacher: call build_distillation(cfg) before "
                "training, or train with aid.engine.AIDTrainer"
            )
        # Images, for the teachers as well, and instances are copied to the device here: after the
        # student's forward pass a copy would wait for it.
        batched_inputs = [{**x, "image": x["image"].to(self.device)} for x in batched_inputs]
        factor, view = self.distillation_factor, None
        if any(map(is_unlabeled, batched_inputs)):
            if factor == 0:
                batched_inputs = [x for x in batched_inputs if not is_unlabeled(x)]
            else:
                batched_inputs, view = self._with_pseudo_labels(batched_inputs)
        instances = [x["instances"].to(self.device) for x in batched_inputs]
        dense_head = getattr(self, "head", None)
        requests = [x.request.cross_convs for x in self.distillers if x.request]
        with (
            _Tap(self.backbone) as backbone,
            _Tap(dense_head) as head,  # its output is used again by prediction distillation
            tap_branches(dense_head, requests) as branches,
        ):
            losses = super().forward(batched_inputs)
        if factor == 0:
            log_distillation_weight(0.0)
            return {**losses, **self._paused()}
        terms = self._distillation_losses(
            batched_inputs, instances, backbone.input, backbone.output, head.output, branches, view
        )
        weight = self.distillation_weight * factor
        return {**losses, **self._weighted(terms, weight, backbone.output)}

    def _with_pseudo_labels(self, batched_inputs: list[dict]) -> tuple[list[dict], TeacherView]:
        """Label the unlabeled samples of a batch by the first teacher, and move them to its end.

        Returns:
            The batch, and the teacher's view of it.
        """
        labeled = [x for x in batched_inputs if not is_unlabeled(x)]
        unlabeled = [x for x in batched_inputs if is_unlabeled(x)]
        batch = labeled + unlabeled
        self.teacher.follow(self.device)
        size = _size(self.preprocess_image(batch).tensor)
        view = self.teacher.view(batch, size, self.input_format)
        labels = self.pseudo_labels.label(self.teacher, view[len(labeled) :])
        log_pseudo_labels(labels)
        pairs = zip(unlabeled, labels, strict=True)
        return labeled + [{**x, "instances": of_image} for x, of_image in pairs], view

    def _weighted(
        self, terms: dict[str, Tensor], weight: float, features: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Distillation losses, multiplied by their strength at this iteration."""
        ratio, iteration = self.gradient_ratio, get_event_storage().iter
        strength: float | Tensor = weight
        if (balance := self.balance) is not None:
            balance.update(iteration)
            ratio = balance if balance.is_due(iteration - self.schedule.start) else None
            strength = weight * balance.factor
        log_distillation_weight(strength)
        weighted = {name: strength * term for name, term in terms.items()}
        if ratio is not None:
            levels = dict.fromkeys(level for x in self.distillers for level in x.strides)
            maps = [features[level] for level in levels]
            one = max(weighted.values(), key=lambda x: x.requires_grad)  # the first with gradient
            ratio.measure(reduce(add, terms.values()), one, strength, maps, iteration)
        return weighted

    def _paused(self) -> dict[str, Tensor]:
        """Zero loss that gives the adapters zero gradients, as DDP requires."""
        assert self.distillation is not None
        empty = [p.flatten()[:0].sum() for p in self.distillation.parameters()]
        return {"loss_distill_paused": sum(empty)} if empty else {}

    def _distillation_losses(
        self,
        batched_inputs: list[dict],
        instances: list[Instances],
        images: Tensor,
        features: dict[str, Tensor],
        predictions: object,
        branches: dict[int, Branches],
        view: TeacherView | None,
    ) -> dict[str, Tensor]:
        terms = {}
        outputs = self.evaluate_teachers(batched_inputs, instances, images, features, view)
        for distiller, output in zip(self.distillers, outputs, strict=True):
            view, weights = output.view, output.weights
            log_weights(
                distiller.log_prefix,
                weights,
                batched_inputs,
                distiller.strides,
                self.input_format,
                self.vis_period,
            )
            context = Context(instances, distiller.strides)
            if distiller.request:
                batch = PredictionBatch(view.images, view.features, features, instances)
                batch.student_predictions, batch.student_branches = predictions, branches
                batch.detections = view.detections
                context.predictions = distiller.predictions(self, batch, output.stats, weights)
            terms.update(distiller.terms(features, view, weights, context))
        return terms

    def evaluate_teachers(
        self,
        batched_inputs: list[dict],
        instances: list[Instances],
        images: Tensor,
        features: dict[str, Tensor],
        first_view: TeacherView | None = None,
    ) -> list[TeacherOutput]:
        """Features of each teacher on a batch, and the imitation weights of its instances.

        Args:
            batched_inputs: the standard input of a Detectron2 model, unlabeled samples last.
            instances: its ground truth, on the student's device; pseudo-labels of unlabeled
                samples.
            images: (N, 3, H, W), the batch as the student preprocesses and pads it.
            features: the student's, of ``images``.
            first_view: of the first teacher, if it is computed already.
        """
        num_labeled = sum(not is_unlabeled(x) for x in batched_inputs)
        labeled, pseudo = instances[:num_labeled], instances[num_labeled:]
        student_losses = None
        if self.weighting.requires_stats and self.weighting.requires_student:
            sizes = [tuple(x["image"].shape[-2:]) for x in batched_inputs]
            student_view = TeacherView(ImageList(images, sizes), features)[:num_labeled]
            student_losses = self._student_losses(
                student_view.images, student_view.features, labeled
            )
        views, stats, weights = [], [], []
        for distiller in self.distillers:
            distiller.teacher.follow(self.device)
            view, first_view = first_view, None
            if view is None:
                view = distiller.teacher.view(batched_inputs, _size(images), self.input_format)
            of_teacher = distiller.stats(view[:num_labeled], labeled, student_losses)
            levels = {k: (_size(features[k]), v) for k, v in distiller.strides.items()}
            of_batch = distiller.weights(of_teacher, labeled, levels)
            if pseudo:
                of_batch = Weights.cat(of_batch, self.pseudo_labels.weights(pseudo, levels))
                if of_teacher is not None:
                    of_teacher.teacher.predictions = None  # of the labeled images alone
            distiller.ignore_unknown_classes(of_batch, instances)
            views.append(view)
            stats.append(of_teacher)
            weights.append(of_batch)
        return list(map(TeacherOutput, views, stats, self.mixing(weights)))

    @torch.no_grad()
    def _student_losses(
        self, images: ImageList, features: dict[str, Tensor], instances: list[Instances]
    ) -> PerInstanceLosses:
        """The student's own loss on every instance, computed in eval mode as the teacher's is."""
        with in_eval_mode(self), EventStorage():
            background = self.weighting.requires_background
            return per_instance_losses(self, images, features, instances, background)


def plain_architecture(name: str) -> str:
    """Meta-architecture of a student without distillation; other names are returned as they are."""
    if name not in META_ARCH_REGISTRY:
        return name
    return getattr(META_ARCH_REGISTRY.get(name), "plain_architecture", name)


def _size(images: Tensor) -> tuple[int, int]:
    """Height and width of (..., H, W)."""
    height, width = images.shape[-2:]
    return height, width


class _Tap:
    """Records the input and the output of a module, which must run once inside the context.

    Attributes:
        input, output: None if there is no module.
    """

    def __init__(self, module: nn.Module | None):
        self._module = module
        self._calls = 0
        self.input: Any = None
        self.output: Any = None

    def __enter__(self) -> "_Tap":
        if self._module is not None:
            self._handle = self._module.register_forward_hook(self._record)
        return self

    def __exit__(self, kind: type | None, *exc_info: Any) -> None:
        if self._module is None:
            return
        self._handle.remove()
        if kind is None:
            name = type(self._module).__name__
            assert self._calls == 1, f"{name} ran {self._calls} times in a forward pass, not once"

    def _record(self, module: nn.Module, inputs: tuple, output: Any) -> None:
        self._calls += 1
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
