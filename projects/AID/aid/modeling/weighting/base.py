"""Base class of the weighting rules, and their registry.

Shape letters: N images, G instances of the batch, L levels of the teacher's losses.
"""

import torch
from detectron2.config import CfgNode, configurable
from fvcore.common.registry import Registry
from torch import Tensor, nn

from ...utils.errors import AIDError
from ...utils.renamed import refuse_renamed
from .maps import constant_map, mean_with, normalized, rasterize_boxes
from .structures import ComponentWeights, TeacherStats, Weights

__all__ = ["WEIGHTING_REGISTRY", "Weighting", "build_weighting"]

WEIGHTING_REGISTRY = Registry("AID_WEIGHTING")
WEIGHTING_REGISTRY.__doc__ = """
Weighting rules. A registered object is called with the config and returns a :class:`Weighting`.
"""

# Names of version 0.1.
RENAMED = {
    "disbelief": "teacher_error",
    "needs_student": "requires_student",
    "needs_quality": "requires_quality",
    "by_part": "component_weights",
}
GRANULARITIES = ("instance", "level", "image", "none")
BACKGROUNDS = ("mean", "loss", "one")


class Weighting(nn.Module):
    """Weight maps from statistics of the teacher, at any granularity.

    A subclass defines :meth:`weight`, the weight as a function of the teacher's error. By default
    the error is the teacher's loss; :meth:`teacher_error` replaces it. A rule with a state updates
    it in :meth:`observe`, in buffers, which are saved in checkpoints.

    Attributes:
        requires_student: whether :attr:`TeacherStats.student` is needed.
        requires_quality: whether :attr:`TeacherStats.quality` is needed.
    """

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        refuse_renamed(cls, RENAMED)

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
                AID.NORMALIZE in config/keys.py.
            coefficients: of the components of the teacher's loss, by name; 1 for those not named.

        Raises:
            AIDError: an unknown granularity or background.
        """
        super().__init__()
        for key, value, known in (
            ("AID.GRANULARITY", granularity, GRANULARITIES),
            ("AID.BACKGROUND", background, BACKGROUNDS),
        ):
            if value not in known:
                raise AIDError(f"{key}: {value!r} is unknown, choose one of {', '.join(known)}")
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
            return "none: the same everywhere"
        return (
            f"{type(self).__name__} by {self.granularity}, background {self.background}, "
            f"normalize {self.normalize}, coefficients {self.coefficients}"
        )

    @property
    def requires_stats(self) -> bool:
        """Whether statistics of the teacher are needed at all."""
        return self.granularity != "none"

    @property
    def requires_background(self) -> bool:
        """Whether the full background loss is needed for images that have instances, too.

        Otherwise it is needed only for images none of whose instances has a finite loss.
        """
        return self.granularity != "instance" or self.background == "loss"

    def weight(self, loss: Tensor) -> Tensor:
        """Weights, of the shape of ``loss``; ignored where the loss is not finite."""
        raise NotImplementedError

    def observe(self, stats: TeacherStats) -> None:
        """Update the state of the rule, once for each batch, before its weights are computed."""

    def teacher_error(self, stats: TeacherStats) -> tuple[Tensor, Tensor]:
        """Error of the teacher, the argument of :meth:`weight`: its loss, by default.

        Returns:
            (G,) of the instances and (N, L) of the background, on the teacher's levels.
        """
        return self.total(stats.teacher.components), self.total(stats.teacher.background)

    def total(self, components: dict[str, Tensor]) -> Tensor:
        """Sum of the components of a loss, times their coefficients."""
        return sum(self.coefficients.get(name, 1.0) * x for name, x in components.items())

    def forward(
        self,
        stats: TeacherStats | None,
        boxes: list[Tensor],
        levels: dict[str, tuple[tuple[int, int], int]],
    ) -> Weights:
        """
        Args:
            stats: None if not :attr:`requires_stats`.
            boxes: ground-truth boxes of each of N images, (G_n, 4), XYXY in pixels.
            levels: {level: ((H, W), stride)} of the maps to make.
        """
        image = _image_of(boxes)
        if stats is None:
            ones = torch.ones(len(boxes), device=image.device)
            maps = {level: constant_map(ones, size) for level, (size, _) in levels.items()}
            return Weights(maps, ones[image])

        self.observe(stats)
        losses = stats.teacher
        loss, background = self.teacher_error(stats)
        instance = self._finite_weight(loss)
        if self.granularity == "instance":
            rest = self._rest(instance, loss.isfinite(), image, background)
        else:
            rest = self._whole(loss, background, losses.level_share, image)
        rest = {level: rest[:, losses.levels.index(level)] for level in levels}
        if self.granularity == "instance":
            maps = rasterize_boxes(boxes, instance, rest, levels)
        else:
            maps = {level: constant_map(rest[level], size) for level, (size, _) in levels.items()}
        if self.normalize:
            maps = {k: normalized(x) for k, x in maps.items()}
        if self.granularity != "instance":
            of_boxes = next(iter(maps.values()))[:, 0, 0, 0][image] if maps else instance
        else:
            of_boxes = normalized(instance) if self.normalize else instance
        return Weights(maps, of_boxes, instance, self.total(losses.components))

    def component_weights(
        self, stats: TeacherStats | None, boxes: list[Tensor]
    ) -> ComponentWeights:
        """Weights of classes and of boxes, by the same rule on the components of the loss.

        Predictions have no level, so that "level" is "image" here, and the components of an RPN are
        left out. Normalized weights have mean 1 over the instances and, for classes, the background
        of each image.

        Args:
            stats, boxes: as for :meth:`forward`, which comes first.
        """
        image = _image_of(boxes)
        if stats is None:
            ones = torch.ones(len(boxes), device=image.device)
            return ComponentWeights(ones[image], ones[image], ones)
        cls, background = self._of_component(stats.only("cls"), image)
        box, _ = self._of_component(stats.only("box", "ctr"), image)
        if self.normalize:
            both = normalized(torch.cat([cls, background]))
            cls, background = both.split([len(cls), len(background)])
            box = normalized(box)
        return ComponentWeights(cls, box, background)

    def _of_component(self, stats: TeacherStats, image: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (G,) of the instances and (N,) of the background."""
        loss, background = self.teacher_error(stats)
        background = background.mean(dim=1, keepdim=True)
        if self.granularity == "instance":
            instance = self._finite_weight(loss)
            return instance, self._rest(instance, loss.isfinite(), image, background)[:, 0]
        share = torch.ones_like(loss)[:, None]
        whole = self._finite_weight(mean_with(background, loss, share, image))[:, 0]
        return whole[image], whole

    def _finite_weight(self, loss: Tensor) -> Tensor:
        return torch.where(loss.isfinite(), self.weight(loss), 0.0)

    def _rest(self, instance: Tensor, finite: Tensor, image: Tensor, background: Tensor) -> Tensor:
        """The weights (N, L) of what lies outside all boxes, on levels with these losses (N, L)."""
        if self.background == "one":
            return torch.ones_like(background)
        by_loss = self._finite_weight(background)
        if self.background == "loss":
            return by_loss
        none = background.new_zeros(len(background))
        count = none.index_add(0, image, finite.to(none.dtype))[:, None]
        # As the smallest weight and what is above it: the mean of equal weights has no rounding.
        least = instance.amin() if len(instance) else 0.0
        total = none.index_add(0, image, torch.where(finite, instance - least, 0.0))[:, None]
        return torch.where(count > 0, least + total / count.clamp(min=1), by_loss)

    def _whole(self, loss: Tensor, background: Tensor, share: Tensor, image: Tensor) -> Tensor:
        """The weights (N, L) of levels that have one weight each, or of images that have."""
        if self.granularity == "image":
            share = torch.ones_like(share)
            background = background.mean(dim=1, keepdim=True).expand_as(background)
        return self._finite_weight(mean_with(background, loss, share, image))


def build_weighting(cfg: CfgNode) -> Weighting:
    """Build the rule that AID.WEIGHTING names.

    Raises:
        AIDError: an unknown name, or a value that the rule refuses.
    """
    name = cfg.AID.WEIGHTING
    if name not in WEIGHTING_REGISTRY:
        known = ", ".join(sorted(key for key, _ in WEIGHTING_REGISTRY))
        raise AIDError(
            f"AID.WEIGHTING: {name!r} is unknown, choose one of {known}, or name the file that "
            "registers it by --register (studies/rules.py has those under study)"
        )
    return WEIGHTING_REGISTRY.get(name)(cfg)


def _image_of(boxes: list[Tensor]) -> Tensor:
    """The image (G,) of each instance."""
    return torch.cat([b.new_full((len(b),), n, dtype=torch.long) for n, b in enumerate(boxes)])
