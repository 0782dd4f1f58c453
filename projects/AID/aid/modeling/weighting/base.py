"""Base class of the weighting rules, and their registry.

Shape letters: N images, G instances of the batch, L levels of the teacher's losses.
"""

from functools import reduce
from operator import add

import torch
from detectron2.config import CfgNode, configurable
from fvcore.common.registry import Registry
from torch import Tensor, nn

from ...utils.errors import AIDError, check_not_negative
from ...utils.suggestions import did_you_mean
from .maps import constant_map, mean_with, rasterize_boxes
from .structures import ComponentWeights, TeacherStats, Weights

__all__ = ["WEIGHTING_REGISTRY", "Weighting", "build_weighting"]

WEIGHTING_REGISTRY = Registry("AID_WEIGHTING")
WEIGHTING_REGISTRY.__doc__ = """
Weighting rules. A registered object is called with the config and returns a :class:`Weighting`.
"""

GRANULARITIES = ("instance", "level", "image", "none")
BACKGROUNDS = ("mean", "loss", "one")


class Weighting(nn.Module):
    """Base class of weighting rules: weight maps from statistics of the teacher.

    A subclass defines :meth:`weight`, the weight as a function of the teacher error, and may
    override :meth:`teacher_error`, by default the teacher's loss D. A rule with a state updates it
    in :meth:`observe` and keeps it in buffers, which are saved in checkpoints.

    Attributes:
        requires_loss: whether the teacher's loss D is needed; False for rules on labels alone.
        requires_student: whether :attr:`TeacherStats.student` is needed.
        requires_quality: whether :attr:`TeacherStats.quality` is needed.
    """

    requires_loss = True
    requires_student = False
    requires_quality = False

    @configurable
    def __init__(
        self,
        *,
        granularity: str = "instance",
        background: str = "mean",
        normalize: bool = False,
        coefficients: dict[str, float] | None = None,
    ):
        """
        Args:
            granularity, background, normalize: see AID.GRANULARITY, AID.BACKGROUND and
                AID.NORMALIZE in config/keys.py; :class:`TeacherMixing` normalizes.
            coefficients: {component of the loss: its coefficient}; 1 for the others.

        Raises:
            AIDError: an unknown granularity or background, or a negative coefficient.
        """
        super().__init__()
        for key, value, known in (
            ("AID.GRANULARITY", granularity, GRANULARITIES),
            ("AID.BACKGROUND", background, BACKGROUNDS),
        ):
            if value not in known:
                raise AIDError(f"{key}: {value!r} is unknown, choose one of {', '.join(known)}")
        for component, factor in (coefficients or {}).items():
            check_not_negative(f"AID.COEFFICIENTS.{component.upper()}", factor)
        self.granularity = granularity
        self.background = background
        self.normalize = normalize
        self.coefficients = coefficients or {}

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {
            "granularity": cfg.AID.GRANULARITY,
            "background": cfg.AID.BACKGROUND,
            "normalize": cfg.AID.NORMALIZE,
            "coefficients": {k.lower(): float(v) for k, v in cfg.AID.COEFFICIENTS.items()},
        }

    def __str__(self) -> str:
        if not self.requires_stats:
            return "none: weight 1 everywhere"
        return (
            f"{type(self).__name__} by {self.granularity}, background {self.background}, "
            f"normalize {self.normalize}, coefficients {self.coefficients}"
        )

    @property
    def requires_stats(self) -> bool:
        """Whether statistics of the teacher are needed."""
        return self.granularity != "none"

    @property
    def requires_background(self) -> bool:
        """Whether the background loss is also needed for images with instances.

        Otherwise it is needed only for images without instances.
        """
        return self.granularity != "instance" or self.background == "loss"

    def weight(self, loss: Tensor) -> Tensor:
        """Weights for teacher errors of any shape; ignored where the error is not finite."""
        raise NotImplementedError

    def observe(self, stats: TeacherStats) -> None:
        """Update the state of the rule, once per batch, before its weights are computed."""

    def teacher_error(self, stats: TeacherStats) -> tuple[Tensor, Tensor]:
        """Teacher error, the argument of :meth:`weight`; by default the teacher's loss D.

        Returns:
            (G,) for the instances and (N, L) for the background, on the teacher's levels.
        """
        return self.total(stats.teacher.components), self.total(stats.teacher.background)

    def total(self, components: dict[str, Tensor]) -> Tensor:
        """Sum of the components of a loss, multiplied by their coefficients."""
        terms = (self.coefficients.get(name, 1.0) * x for name, x in components.items())
        return reduce(add, terms)

    def forward(
        self,
        stats: TeacherStats | None,
        boxes: list[Tensor],
        levels: dict[str, tuple[tuple[int, int], int]],
    ) -> Weights:
        """Compute the weights of a batch.

        Args:
            stats: statistics of the teacher; None if not :attr:`requires_stats`.
            boxes: ground-truth boxes, N tensors (G_n, 4), XYXY in pixels.
            levels: {level: ((H, W), pixels per cell)} of the maps.
        """
        image = _image_of(boxes)
        if stats is None:
            ones = torch.ones(len(boxes), device=image.device)
            return Weights({k: constant_map(ones, size) for k, (size, _) in levels.items()})

        self.observe(stats)
        losses = stats.teacher
        loss, background = self.teacher_error(stats)
        instance = self._finite_weight(loss)
        if self.granularity == "instance":
            by_level = self._background_weight(instance, loss.isfinite(), image, background)
        else:
            by_level = self._level_weight(loss, background, losses.level_share, image)
        rest = {level: by_level[:, losses.levels.index(level)] for level in levels}
        if self.granularity == "instance":
            maps = rasterize_boxes(boxes, instance, rest, levels)
        else:
            maps = {level: constant_map(rest[level], size) for level, (size, _) in levels.items()}
        return Weights(maps, instance, self.total(losses.components))

    def component_weights(
        self, stats: TeacherStats | None, boxes: list[Tensor]
    ) -> ComponentWeights:
        """Compute separate weights of predicted classes and boxes, from components of the loss.

        Predictions have no level, so that granularity "level" means "image" here. The components of
        an RPN are left out.

        Args:
            stats, boxes: see :meth:`forward`, which is called first.
        """
        image = _image_of(boxes)
        if stats is None:
            ones = torch.ones(len(boxes), device=image.device)
            return ComponentWeights(ones[image], ones[image], ones)
        cls, background = self._component_weight(stats.only("cls"), image)
        box, _ = self._component_weight(stats.only("box", "ctr"), image)
        return ComponentWeights(cls, box, background)

    def _component_weight(self, stats: TeacherStats, image: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (G,) of the instances and (N,) of the background from the selected losses."""
        loss, background = self.teacher_error(stats)
        background = background.mean(dim=1, keepdim=True)
        if self.granularity == "instance":
            instance = self._finite_weight(loss)
            finite = loss.isfinite()
            return instance, self._background_weight(instance, finite, image, background)[:, 0]
        share = torch.ones_like(loss)[:, None]
        whole = self._finite_weight(mean_with(background, loss, share, image))[:, 0]
        return whole[image], whole

    def _finite_weight(self, loss: Tensor) -> Tensor:
        """Weights for teacher errors of any shape, 0 where the error is not finite."""
        return torch.where(loss.isfinite(), self.weight(loss), 0.0)

    def _background_weight(
        self, instance: Tensor, finite: Tensor, image: Tensor, background: Tensor
    ) -> Tensor:
        """Weights (N, L) outside of all boxes.

        Args:
            instance: (G,), weights of the instances.
            finite: (G,), bool, instances with a finite error.
            image: (G,), in [0, N).
            background: (N, L), teacher error on the background.
        """
        if self.background == "one":
            return torch.ones_like(background)
        by_loss = self._finite_weight(background)
        if self.background == "loss":
            return by_loss
        none = background.new_zeros(len(background))
        count = none.index_add(0, image, finite.to(none.dtype))[:, None]
        # Smallest weight plus mean excess: the mean of equal weights has no rounding error.
        least = instance.amin() if len(instance) else 0.0
        total = none.index_add(0, image, torch.where(finite, instance - least, 0.0))[:, None]
        return torch.where(count > 0, least + total / count.clamp(min=1), by_loss)

    def _level_weight(
        self, loss: Tensor, background: Tensor, share: Tensor, image: Tensor
    ) -> Tensor:
        """Weights (N, L) under granularity "level" or "image".

        Args:
            loss, image: (G,), teacher error on the instances, and their images.
            background: (N, L), teacher error on the background.
            share: (G, L), see :attr:`PerInstanceLosses.level_share`.
        """
        if self.granularity == "image":
            share = torch.ones_like(share)
            background = background.mean(dim=1, keepdim=True).expand_as(background)
        return self._finite_weight(mean_with(background, loss, share, image))


def build_weighting(cfg: CfgNode) -> Weighting:
    """Build the weighting rule that AID.WEIGHTING names.

    Raises:
        AIDError: an unknown name, or a value that the rule does not accept.
    """
    name = cfg.AID.WEIGHTING
    if name not in WEIGHTING_REGISTRY:
        known = sorted(key for key, _ in WEIGHTING_REGISTRY)
        raise AIDError(
            f"AID.WEIGHTING: {name!r} is unknown{did_you_mean(name, known)}, choose one of "
            f"{', '.join(known)}, or pass the file that registers it as --register "
            "(studies/rules.py has those under study)"
        )
    return WEIGHTING_REGISTRY.get(name)(cfg)


def _image_of(boxes: list[Tensor]) -> Tensor:
    """Image (G,) of each instance."""
    return torch.cat([b.new_full((len(b),), n, dtype=torch.long) for n, b in enumerate(boxes)])
