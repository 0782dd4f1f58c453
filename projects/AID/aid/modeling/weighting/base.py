"""What every weighting rule shares: from how much to believe the teacher to where.

Shape letters: N images, G instances of the batch, L levels of the teacher's losses.
"""

import torch
from detectron2.config import CfgNode, configurable
from fvcore.common.registry import Registry
from torch import Tensor, nn

from ...errors import AIDError
from .means import mean_with, normalized
from .structures import Evidence, PartWeights, Weights
from .weight_map import constant_map, paint_boxes

__all__ = ["WEIGHTING_REGISTRY", "Weighting", "build_weighting"]

WEIGHTING_REGISTRY = Registry("AID_WEIGHTING")
WEIGHTING_REGISTRY.__doc__ = """
Rules from evidence about the teacher to weights of imitation. A registered object is called with
the config and returns a :class:`Weighting`.
"""

GRANULARITIES = ("instance", "level", "image", "none")
BACKGROUNDS = ("mean", "loss", "one")


class Weighting(nn.Module):
    """From evidence about the teacher to weight maps, at any granularity.

    A subclass says in :meth:`weight` what a loss is worth, and, if the loss is not the teacher's,
    in :meth:`disbelief` what stands for it; what it remembers of batches, in buffers that are kept
    in checkpoints, it learns in :meth:`observe`.
    """

    # Whether :attr:`Evidence.student` and :attr:`Evidence.quality` are needed.
    needs_student = False
    needs_quality = False

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
            coefficients: of the parts of the teacher's loss, by name; 1 for a part not named.

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
        if not self.needs_evidence:
            return "none: the same everywhere"
        return (
            f"{type(self).__name__} by {self.granularity}, background {self.background}, "
            f"normalize {self.normalize}, coefficients {self.coefficients}"
        )

    @property
    def needs_evidence(self) -> bool:
        """Whether the teacher's losses are needed at all."""
        return self.granularity != "none"

    @property
    def needs_background(self) -> bool:
        """Whether all of the background's loss is needed of images that have instances, too.

        Where none of their losses is finite, an image falls back on what there is of it.
        """
        return self.granularity != "instance" or self.background == "loss"

    def weight(self, loss: Tensor) -> Tensor:
        """Weights, of the shape of ``loss``; where the loss is not finite they do not matter."""
        raise NotImplementedError

    def observe(self, evidence: Evidence) -> None:
        """Take note of a batch, once, before its weights are asked for."""

    def disbelief(self, evidence: Evidence) -> tuple[Tensor, Tensor]:
        """What :meth:`weight` is a function of: the teacher's loss.

        Returns:
            (G,) for the instances and (N, L) for the background, in the teacher's levels.
        """
        return self.total(evidence.teacher.parts), self.total(evidence.teacher.background)

    def total(self, parts: dict[str, Tensor]) -> Tensor:
        """The sum of the parts of a loss by their coefficients."""
        return sum(self.coefficients.get(name, 1.0) * part for name, part in parts.items())

    def forward(
        self,
        evidence: Evidence | None,
        boxes: list[Tensor],
        levels: dict[str, tuple[tuple[int, int], int]],
    ) -> Weights:
        """
        Args:
            evidence: None if not :attr:`needs_evidence`.
            boxes: ground-truth boxes of each of N images, (G_n, 4), XYXY in pixels.
            levels: {level: ((H, W), stride)} of the maps to make.
        """
        image = _image_of(boxes)
        if evidence is None:
            ones = torch.ones(len(boxes), device=image.device)
            maps = {level: constant_map(ones, size) for level, (size, _) in levels.items()}
            return Weights(maps, ones[image])

        self.observe(evidence)
        losses = evidence.teacher
        loss, background = self.disbelief(evidence)
        instance = self._finite_weight(loss)
        if self.granularity == "instance":
            rest = self._rest(instance, loss.isfinite(), image, background)
        else:
            rest = self._whole(loss, background, losses.level_share, image)
        rest = {level: rest[:, losses.levels.index(level)] for level in levels}
        if self.granularity == "instance":
            maps = paint_boxes(boxes, instance, rest, levels)
        else:
            maps = {level: constant_map(rest[level], size) for level, (size, _) in levels.items()}
        if self.normalize:
            maps = {k: normalized(x) for k, x in maps.items()}
        if self.granularity != "instance":
            of_boxes = next(iter(maps.values()))[:, 0, 0, 0][image] if maps else instance
        else:
            of_boxes = normalized(instance) if self.normalize else instance
        return Weights(maps, of_boxes, instance, self.total(losses.parts))

    def by_part(self, evidence: Evidence | None, boxes: list[Tensor]) -> PartWeights:
        """The same rule on the parts of the loss, for a loss that tells classes from boxes.

        Answers have no level, and what an RPN says is none of them: its parts do not count, and
        "level" is "image". Normalised weights have mean 1 over instances and, for the classes, the
        background of each image.

        Args:
            evidence, boxes: as for :meth:`forward`, which comes first.
        """
        image = _image_of(boxes)
        if evidence is None:
            ones = torch.ones(len(boxes), device=image.device)
            return PartWeights(ones[image], ones[image], ones)
        cls, background = self._of_part(evidence.only("cls"), image)
        box, _ = self._of_part(evidence.only("box", "ctr"), image)
        if self.normalize:
            both = normalized(torch.cat([cls, background]))
            cls, background = both.split([len(cls), len(background)])
            box = normalized(box)
        return PartWeights(cls, box, background)

    def _of_part(self, evidence: Evidence, image: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (G,) of the instances and (N,) of the background."""
        loss, background = self.disbelief(evidence)
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
