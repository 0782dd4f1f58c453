"""Base classes of the distillation losses, and their registry.

Shape letters: N images, C_s and C_t channels of student and teacher, (H, W) size of a level.
"""

from dataclasses import dataclass

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.structures import Instances
from fvcore.common.registry import Registry
from torch import Tensor, nn

from ...utils.errors import AIDError
from ...utils.renamed import refuse_renamed
from ..families import PairedPredictions
from .functional import standardized

__all__ = [
    "Context",
    "DISTILLATION_LOSS_REGISTRY",
    "DistillationLoss",
    "FeatureLoss",
    "SingleTermLoss",
    "SoftTargetLoss",
    "average_norm",
    "average_sum",
    "build_distillation_losses",
    "channels_of",
    "check_temperature",
    "make_adapter",
    "make_adapters",
    "norm_per_image",
]

DISTILLATION_LOSS_REGISTRY = Registry("AID_DISTILLATION_LOSS")
DISTILLATION_LOSS_REGISTRY.__doc__ = """
Distillation losses. A registered object is called as
``obj(cfg, levels, student_shapes, teacher_shapes)``, with the names of the levels to imitate,
finest first, and the :class:`ShapeSpec` of each level on both sides, and returns a
:class:`DistillationLoss`. Every parameter must get a gradient at every step, also where an image
has no box, so that DDP need not look for unused ones. A loss that reads ``context.predictions`` has
an attribute ``request``, the :class:`~aid.modeling.families.PredictionRequest` of what it needs.
"""


@dataclass
class Context:
    """What else a loss may want to know of the batch.

    Attributes:
        instances: ground truth of each image.
        strides: {level: pixels per cell}.
        predictions: what both sides say; None unless a loss ``request``.
    """

    instances: list[Instances]
    strides: dict[str, int]
    predictions: PairedPredictions | None = None


class DistillationLoss(nn.Module):
    """A distillation loss; a subclass has :meth:`terms`."""

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        refuse_renamed(cls, {"asks": "request"})

    def forward(
        self,
        student: dict[str, Tensor],
        teacher: dict[str, Tensor],
        weights: dict[str, Tensor],
        context: Context,
    ) -> dict[str, Tensor]:
        """The loss in float32, also under autocast: norms over a map overflow in half precision.

        Args:
            student, teacher: {level: (N, C, H, W)}; the teacher's without gradient.
            weights: {level: (N, 1, H, W)}, at least 0.
            context: what else there is to know of the batch.

        Returns:
            Scalars by name, each multiplied by its own weight.
        """
        some = next(iter(student.values())) if student else context.predictions.image
        with torch.autocast(some.device.type, enabled=False):
            student, teacher = (
                {k: x if x.dtype == torch.float64 else x.float() for k, x in y.items()}
                for y in (student, teacher)
            )
            return self.terms(student, teacher, weights, context)

    def terms(
        self,
        student: dict[str, Tensor],
        teacher: dict[str, Tensor],
        weights: dict[str, Tensor],
        context: Context,
    ) -> dict[str, Tensor]:
        """The scalars by name; arguments as of :meth:`forward`, in float32."""
        raise NotImplementedError


class FeatureLoss(DistillationLoss):
    """A loss on features, level by level; a subclass has :meth:`level`.

    Attributes:
        term_weights: {name of a term: its weight}.
        can_standardize: whether DISTILLATION.STANDARDIZE is read.
    """

    can_standardize = True

    def __init__(self, term_weights: dict[str, float], standardize: bool = True):
        """
        Args:
            term_weights: of the terms that :meth:`level` returns, in their order.
            standardize: see DISTILLATION.STANDARDIZE.
        """
        super().__init__()
        self.term_weights = term_weights
        self.standardize = standardize and self.can_standardize

    def extra_repr(self) -> str:
        weights = [
            f"{name.removeprefix('loss_distill_')} {x}" for name, x in self.term_weights.items()
        ]
        return ", ".join(weights + ["standardized"] * self.standardize)

    def level(
        self, name: str, student: Tensor, teacher: Tensor, weights: Tensor, context: Context
    ) -> tuple[Tensor, ...]:
        """The terms of one level, averaged over the batch.

        Args:
            name: of the level.
            student: (N, C_s, H, W), standardised if the loss is told to.
            teacher: (N, C_t, H, W), likewise, without gradient.
            weights: (N, 1, H, W).
            context: what else there is to know of the batch.

        Returns:
            A scalar for each of :attr:`term_weights`.
        """
        raise NotImplementedError

    def seen(self, features: Tensor, weights: Tensor) -> Tensor:
        """Features (N, C, H, W) as they are compared, ahead of adapters; weights (N, 1, H, W)."""
        return standardized(features, weights) if self.standardize else features

    def compared(
        self, name: str, student: Tensor, teacher: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Both sides (N, C_t, H, W) as their difference is imitated, if the loss has ``adapt``."""
        return self.adapt(name, self.seen(student, weights)), self.seen(teacher, weights)

    def terms(
        self,
        student: dict[str, Tensor],
        teacher: dict[str, Tensor],
        weights: dict[str, Tensor],
        context: Context,
    ) -> dict[str, Tensor]:
        """See :class:`DistillationLoss`: the sums over the levels."""
        costs = []
        for name, w in weights.items():
            ours, theirs = (self.seen(x[name], w) for x in (student, teacher))
            costs.append(self.level(name, ours, theirs, w, context))
        sums = (torch.stack(x).sum() for x in zip(*costs, strict=True))
        named = zip(self.term_weights.items(), sums, strict=True)
        return {name: weight * x for (name, weight), x in named}


class SingleTermLoss(FeatureLoss):
    """A loss of one term with a weight; a subclass has ``level``.

    Attributes:
        term: name of the loss.
        key: of its part of cfg.DISTILLATION.
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
            channels: (C_s, C_t) of each level.
            weight: of the loss.
            standardize: see DISTILLATION.STANDARDIZE.
            adapt_equal_widths: see DISTILLATION.ADAPT_EQUAL_WIDTHS.
        """
        super().__init__({self.term: weight}, standardize)
        self.adapters = make_adapters(channels, adapt_equal_widths)

    @classmethod
    def from_config(cls, cfg: CfgNode, levels, student_shapes, teacher_shapes) -> dict:
        return {
            "channels": channels_of(levels, student_shapes, teacher_shapes),
            "weight": cfg.DISTILLATION[cls.key].WEIGHT,
            "standardize": cfg.DISTILLATION.STANDARDIZE,
            "adapt_equal_widths": cfg.DISTILLATION.ADAPT_EQUAL_WIDTHS,
        }


class SoftTargetLoss(DistillationLoss):
    """A loss of one term with a temperature and a weight; a subclass has ``request`` and ``terms``.

    Attributes:
        key: of its part of cfg.DISTILLATION.
    """

    key: str

    @configurable
    def __init__(self, *, temperature: float, weight: float):
        """
        Args:
            temperature: T.
            weight: of the loss.

        Raises:
            AIDError: a temperature that is not positive.
        """
        super().__init__()
        check_temperature(f"DISTILLATION.{self.key}.TEMPERATURE", temperature)
        self.temperature = temperature
        self.weight = weight

    @classmethod
    def from_config(cls, cfg: CfgNode, levels, student_shapes, teacher_shapes) -> dict:
        keys = cfg.DISTILLATION[cls.key]
        return {"temperature": keys.TEMPERATURE, "weight": keys.WEIGHT}

    def extra_repr(self) -> str:
        return f"weight {self.weight}, temperature {self.temperature}"


def channels_of(
    levels: tuple[str, ...],
    student_shapes: dict[str, ShapeSpec],
    teacher_shapes: dict[str, ShapeSpec],
) -> dict[str, tuple[int, int]]:
    """(C_s, C_t) of each level, finest first."""
    return {k: (student_shapes[k].channels, teacher_shapes[k].channels) for k in levels}


def make_adapter(channels: tuple[int, int], always: bool = False) -> nn.Module:
    """A 1x1 convolution from the student's to the teacher's channels.

    Args:
        channels: (C_s, C_t).
        always: see DISTILLATION.ADAPT_EQUAL_WIDTHS; else there is none where the two are equal.
    """
    needed = always or channels[0] != channels[1]
    return nn.Conv2d(*channels, kernel_size=1) if needed else nn.Identity()


def make_adapters(channels: dict[str, tuple[int, int]], always: bool = False) -> nn.ModuleDict:
    """:func:`make_adapter` by level."""
    return nn.ModuleDict({k: make_adapter(x, always) for k, x in channels.items()})


def check_temperature(key: str, value: float) -> None:
    """Refuse a temperature that is not above 0, by the key of the config that it comes from.

    Raises:
        AIDError: it is not.
    """
    if not value > 0:
        raise AIDError(f"{key} is {value}: it must be above 0")


def average_norm(norms: Tensor, num_elements: int, scale: str) -> Tensor:
    """The average of 2-norms over the batch.

    Args:
        norms: (N,), of each image.
        num_elements: of which each norm is taken.
        scale: "sum", or "rms", which divides each norm by the root of its number of elements.
    """
    return norms.mean() if scale == "sum" else norms.mean() / num_elements**0.5


def average_sum(sums: Tensor, num_elements: int, scale: str) -> Tensor:
    """The average of sums over the batch, as :func:`average_norm` is that of their roots.

    Args:
        sums: (N,), of each image.
        num_elements: that each sum has.
        scale: "sum", or "rms", which divides each sum by its number of elements.
    """
    return sums.mean() if scale == "sum" else sums.mean() / num_elements


def norm_per_image(x: Tensor, scale: str) -> Tensor:
    """:func:`average_norm` of the elements of x: (N, ...); its gradient at 0 is 0."""
    return average_norm(torch.linalg.vector_norm(x.flatten(1), dim=1), x[0].numel(), scale)


def build_distillation_losses(
    cfg: CfgNode,
    levels: tuple[str, ...],
    student_shapes: dict[str, ShapeSpec],
    teacher_shapes: dict[str, ShapeSpec],
) -> nn.ModuleDict:
    """Build the losses that DISTILLATION.LOSSES names, by name.

    Raises:
        AIDError: an empty list, an unknown name, or an unknown DISTILLATION.SCALE.
    """
    if not cfg.DISTILLATION.LOSSES:
        raise AIDError(
            "DISTILLATION.LOSSES is empty: without a distillation loss nothing is taught"
        )
    if cfg.DISTILLATION.SCALE not in ("sum", "rms"):
        raise AIDError(f"DISTILLATION.SCALE: {cfg.DISTILLATION.SCALE!r} is not one of sum, rms")
    losses = nn.ModuleDict()
    for name in cfg.DISTILLATION.LOSSES:
        if name not in DISTILLATION_LOSS_REGISTRY:
            known = ", ".join(sorted(key for key, _ in DISTILLATION_LOSS_REGISTRY))
            raise AIDError(f"DISTILLATION.LOSSES: {name!r} is unknown, choose from {known}")
        losses[name] = DISTILLATION_LOSS_REGISTRY.get(name)(
            cfg, levels, student_shapes, teacher_shapes
        )
    return losses
