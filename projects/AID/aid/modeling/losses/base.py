"""Base classes of the distillation losses, and their registry.

Shape letters: N images, C_s and C_t channels of student and teacher, (H, W) size of a level,
S samples of a prediction loss.
"""

from dataclasses import dataclass

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.structures import Instances
from fvcore.common.registry import Registry
from torch import Tensor, nn

from ...utils.errors import AIDError, check_not_negative
from ..families import PairedPredictions, PredictionRequest
from .functional import mean_over_images, standardized

__all__ = [
    "Context",
    "DISTILLATION_LOSS_REGISTRY",
    "DistillationLoss",
    "FeatureLoss",
    "PredictionLoss",
    "SingleTermLoss",
    "average_norm",
    "average_sum",
    "channels_of",
    "check_scale",
    "in_float32",
    "make_adapter",
    "make_adapters",
    "norm_per_image",
]

DISTILLATION_LOSS_REGISTRY = Registry("AID_DISTILLATION_LOSS")
DISTILLATION_LOSS_REGISTRY.__doc__ = """
Distillation losses. A registered object is called as
``obj(cfg, levels, student_shapes, teacher_shapes)``, with the names of the levels to imitate,
finest first, and the :class:`ShapeSpec` of each level of student and teacher, and returns a
:class:`DistillationLoss`. Every parameter must get a gradient at every step, also where an image
has no box, as DDP requires. A loss that reads ``context.predictions`` has an attribute ``request``,
the :class:`~aid.modeling.families.PredictionRequest` of the predictions that it needs.
"""


@dataclass
class Context:
    """Further inputs of a distillation loss.

    Attributes:
        instances: ground truth of each image.
        strides: {level: pixels per cell}.
        predictions: predictions of student and teacher; None unless a loss has a ``request``.
    """

    instances: list[Instances]
    strides: dict[str, int]
    predictions: PairedPredictions | None = None


class DistillationLoss(nn.Module):
    """Base class of the distillation losses; a subclass defines :meth:`terms`.

    Attributes:
        term_weights: {name of a term: its weight}; may be empty if the subclass applies them.
        reads_features: whether the loss reads features. If no loss of a teacher does, they are
            left out.
    """

    reads_features = True

    def __init__(self, term_weights: dict[str, float] | None = None):
        """
        Args:
            term_weights: see the attributes.

        Raises:
            AIDError: a negative weight.
        """
        super().__init__()
        self.term_weights = term_weights or {}
        for name, weight in self.term_weights.items():
            check_not_negative(f"the weight of {name} in {type(self).__name__}", weight)

    def extra_repr(self) -> str:
        weights = self.term_weights.items()
        return ", ".join(f"{name.removeprefix('loss_distill_')} {x}" for name, x in weights)

    @classmethod
    def from_config(
        cls,
        cfg: CfgNode,
        levels: tuple[str, ...],
        student_shapes: dict[str, ShapeSpec],
        teacher_shapes: dict[str, ShapeSpec],
    ) -> dict:
        """Arguments of a constructor with ``configurable``; see DISTILLATION_LOSS_REGISTRY."""
        return cls.arguments(cfg)

    @classmethod
    def arguments(cls, cfg: CfgNode) -> dict:
        """Arguments of the constructor that depend on the config alone."""
        raise NotImplementedError

    def forward(
        self,
        student: dict[str, Tensor],
        teacher: dict[str, Tensor],
        weights: dict[str, Tensor],
        context: Context,
    ) -> dict[str, Tensor]:
        """Compute the loss in float32, also under autocast: half precision overflows in norms.

        Args:
            student, teacher: {level: (N, C, H, W)}; the teacher's without gradient.
            weights: {level: (N, 1, H, W)}, imitation weights, at least 0.
            context: further inputs.

        Returns:
            {name: scalar}, each multiplied by its own weight.
        """
        some = next(iter(student.values()), None)
        if some is None:
            assert context.predictions is not None
            some = context.predictions.image
        with torch.autocast(some.device.type, enabled=False):
            if self.reads_features:
                student, teacher = in_float32(student), in_float32(teacher)
            return self.terms(student, teacher, weights, context)

    def terms(
        self,
        student: dict[str, Tensor],
        teacher: dict[str, Tensor],
        weights: dict[str, Tensor],
        context: Context,
    ) -> dict[str, Tensor]:
        """Compute the terms of the loss; see :meth:`forward`, features are in float32."""
        raise NotImplementedError


class FeatureLoss(DistillationLoss):
    """Base class of losses on features, level by level; a subclass defines :meth:`level`.

    A method ``adapt(level, student)`` of a subclass, which returns the student's features
    (N, C_t, H, W) that are compared with the teacher's, makes :meth:`compared` available.
    Configurable subclasses take ``channels``, ``standardize`` and ``adapt_equal_widths``, besides
    their own :meth:`arguments`.

    Attributes:
        channels: {level: (C_s, C_t)} that the loss was built for; None if it fits any.
        can_standardize: whether DISTILLATION.STANDARDIZE is read.
    """

    can_standardize = True

    def __init__(
        self,
        term_weights: dict[str, float],
        standardize: bool = True,
        channels: dict[str, tuple[int, int]] | None = None,
    ):
        """
        Args:
            term_weights: weights of the terms that :meth:`level` returns, in the same order.
            standardize: see DISTILLATION.STANDARDIZE.
            channels: see the attributes.

        Raises:
            AIDError: a negative weight.
        """
        super().__init__(term_weights)
        self.channels = channels
        self.standardize = standardize and self.can_standardize

    @classmethod
    def from_config(
        cls,
        cfg: CfgNode,
        levels: tuple[str, ...],
        student_shapes: dict[str, ShapeSpec],
        teacher_shapes: dict[str, ShapeSpec],
    ) -> dict:
        return {
            "channels": channels_of(levels, student_shapes, teacher_shapes),
            "standardize": cfg.DISTILLATION.STANDARDIZE,
            "adapt_equal_widths": cfg.DISTILLATION.ADAPT_EQUAL_WIDTHS,
            **cls.arguments(cfg),
        }

    def extra_repr(self) -> str:
        return super().extra_repr() + ", standardized" * self.standardize

    def level(
        self, name: str, student: Tensor, teacher: Tensor, weights: Tensor, context: Context
    ) -> tuple[Tensor, ...]:
        """Compute the terms of one level, averaged over the batch.

        Args:
            name: name of the level.
            student: (N, C_s, H, W), standardized if :attr:`standardize`.
            teacher: (N, C_t, H, W), likewise, without gradient.
            weights: (N, 1, H, W), imitation weights.
            context: further inputs.

        Returns:
            One scalar for each of :attr:`term_weights`.
        """
        raise NotImplementedError

    def seen(self, features: Tensor, weights: Tensor) -> Tensor:
        """Features (N, C, H, W) as :meth:`level` gets them; weights (N, 1, H, W)."""
        return standardized(features, weights) if self.standardize else features

    def compared(
        self, name: str, student: Tensor, teacher: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Features (N, C_t, H, W) of student and teacher whose difference the loss reduces.

        Args:
            name, weights: see :meth:`level`.
            student, teacher: see :meth:`level`, not standardized.
        """
        return self.adapt(name, self.seen(student, weights)), self.seen(teacher, weights)

    def terms(
        self,
        student: dict[str, Tensor],
        teacher: dict[str, Tensor],
        weights: dict[str, Tensor],
        context: Context,
    ) -> dict[str, Tensor]:
        """Sum each term over the levels; see :class:`DistillationLoss`."""
        levels = []
        for name, w in weights.items():
            student_x, teacher_x = (self.seen(x[name], w) for x in (student, teacher))
            levels.append(self.level(name, student_x, teacher_x, w, context))
        sums = (torch.stack(x).sum() for x in zip(*levels, strict=True))
        named = zip(self.term_weights.items(), sums, strict=True)
        return {name: weight * x for (name, weight), x in named}


class SingleTermLoss(FeatureLoss):
    """Base class of losses on features with one term; a subclass defines :meth:`level`.

    Attributes:
        term: name of the term.
        key: name of the loss's node in cfg.DISTILLATION.
        adapters: {level: adapter of the student's features}, see :func:`make_adapter`.
    """

    term: str
    key: str

    @configurable
    def __init__(
        self,
        *,
        channels: dict[str, tuple[int, int]],
        weight: float,
        standardize: bool = True,
        adapt_equal_widths: bool = False,
    ):
        """
        Args:
            channels: {level: (C_s, C_t)}.
            weight: weight of the term.
            standardize, adapt_equal_widths: see the keys of DISTILLATION.
        """
        super().__init__({self.term: weight}, standardize, channels)
        self.adapters = make_adapters(channels, adapt_equal_widths)

    @classmethod
    def arguments(cls, cfg: CfgNode) -> dict:
        return {"weight": cfg.DISTILLATION[cls.key].WEIGHT}


class PredictionLoss(DistillationLoss):
    """Base class of losses on predictions; a subclass defines :meth:`sample_losses`.

    The term of classes is the mean over all samples of an image, that of boxes the mean over the
    samples that match an instance; both are averaged over the batch.

    Attributes:
        request: predictions that the loss needs.
    """

    reads_features = False
    request: PredictionRequest

    def __init__(self, terms: dict[str, tuple[str, float]]):
        """
        Args:
            terms: {"cls" or "box": (name of the term, its weight)}.

        Raises:
            AIDError: a negative weight.
        """
        super().__init__(dict(terms.values()))
        self._names = {component: name for component, (name, _) in terms.items()}

    def sample_losses(self, predictions: PairedPredictions) -> dict[str, Tensor]:
        """Losses (S,) of classes "cls" and boxes "box", without imitation weights.

        They are 0 for samples whose prediction by the teacher is not finite.
        """
        raise NotImplementedError

    def terms(
        self,
        student: dict[str, Tensor],
        teacher: dict[str, Tensor],
        weights: dict[str, Tensor],
        context: Context,
    ) -> dict[str, Tensor]:
        """Average the weighted losses of the samples; see :class:`DistillationLoss`."""
        predictions, num_images = context.predictions, len(context.instances)
        assert predictions is not None and predictions.weights is not None
        terms = {}
        for component, losses in self.sample_losses(predictions).items():
            name = self._names[component]
            counted = predictions.foreground if component == "box" else None
            losses = predictions.weights[component] * losses
            mean = mean_over_images(losses, predictions.image, num_images, counted)
            terms[name] = self.term_weights[name] * mean
        return terms


def channels_of(
    levels: tuple[str, ...],
    student_shapes: dict[str, ShapeSpec],
    teacher_shapes: dict[str, ShapeSpec],
) -> dict[str, tuple[int, int]]:
    """Channels {level: (C_s, C_t)}, finest level first."""
    return {k: (student_shapes[k].channels, teacher_shapes[k].channels) for k in levels}


def make_adapter(channels: tuple[int, int], always: bool = False) -> nn.Module:
    """Build a 1x1 convolution from the student's to the teacher's channels.

    Args:
        channels: (C_s, C_t).
        always: see DISTILLATION.ADAPT_EQUAL_WIDTHS; if False, equal channels get an identity.
    """
    needed = always or channels[0] != channels[1]
    return nn.Conv2d(*channels, kernel_size=1) if needed else nn.Identity()


def make_adapters(channels: dict[str, tuple[int, int]], always: bool = False) -> nn.ModuleDict:
    """Build an adapter for each level; see :func:`make_adapter`."""
    return nn.ModuleDict({k: make_adapter(x, always) for k, x in channels.items()})


def check_scale(scale: str) -> None:
    """Check a DISTILLATION.SCALE.

    Raises:
        AIDError: it is neither "sum" nor "rms".
    """
    if scale not in ("sum", "rms"):
        raise AIDError(f"DISTILLATION.SCALE: {scale!r} is not one of sum, rms")


def in_float32(features: dict[str, Tensor]) -> dict[str, Tensor]:
    """Feature maps in float32, by level; those in float32 or float64 are returned as they are."""
    return {k: x if x.dtype == torch.float64 else x.float() for k, x in features.items()}


def average_norm(norms: Tensor, num_elements: int, scale: str) -> Tensor:
    """Average of 2-norms over the batch.

    Args:
        norms: (N,), of each image.
        num_elements: number of elements of each norm.
        scale: "sum", or "rms", which divides each norm by the square root of ``num_elements``.
    """
    return norms.mean() if scale == "sum" else norms.mean() / num_elements**0.5


def average_sum(sums: Tensor, num_elements: int, scale: str) -> Tensor:
    """Average of sums over the batch.

    Args:
        sums: (N,), of each image.
        num_elements: number of elements of each sum.
        scale: "sum", or "rms", which divides each sum by ``num_elements``.
    """
    return sums.mean() if scale == "sum" else sums.mean() / num_elements


def norm_per_image(x: Tensor, scale: str) -> Tensor:
    """Average 2-norm of the images of x (N, ...), see :func:`average_norm`; gradient 0 at 0."""
    return average_norm(torch.linalg.vector_norm(x.flatten(1), dim=1), x[0].numel(), scale)
