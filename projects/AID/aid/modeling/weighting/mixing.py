"""Several teachers of one student: who is to be believed how much.

Shape letters: T teachers, G instances of the batch.
"""

from dataclasses import replace

import torch
from torch import Tensor

from .base import Weighting
from .maps import normalized
from .structures import ComponentWeights, Weights

__all__ = ["TeacherMixing", "shared"]


class TeacherMixing:
    """Divides each place among the teachers by what they are worth there.

    A teacher's weight w_t becomes w_t * w_t / sum_u w_u, over all teachers u: the shares are the
    softmax of -alpha * D where w = exp(-alpha * D). A level is shared by the teachers that have it.
    Normalisation (AID.NORMALIZE) comes afterwards, of what the teachers have together.
    """

    def __init__(self, weightings: list[Weighting]):
        """
        Args:
            weightings: the rule of each teacher, by one config. Of several none normalises by
                itself from now on.
        """
        self.normalize = weightings[0].normalize and len(weightings) > 1
        self.by_instance = weightings[0].granularity == "instance"
        if self.normalize:
            for weighting in weightings:
                weighting.normalize = False

    def __call__(self, weights: list[Weights]) -> list[Weights]:
        """
        Args:
            weights: of each teacher by itself.

        Returns:
            Theirs together. The losses D stay as they are; one teacher keeps all.
        """
        if len(weights) == 1:
            return weights
        plain = weights[0].instance is None  # nothing is known of the teachers
        normalize = self.normalize and not plain
        maps = [{} for _ in weights]
        for level in dict.fromkeys(level for x in weights for level in x.maps):
            having = [t for t, x in enumerate(weights) if level in x.maps]
            parts = shared([weights[t].maps[level] for t in having])
            if normalize:
                parts = normalized(parts, by=parts.sum(dim=0))
            for t, part in zip(having, parts, strict=True):
                maps[t][level] = part
        boxes = shared([x.boxes for x in weights])
        if normalize:
            boxes = normalized(boxes, by=self._measure(boxes, weights))
        instance = [None] * len(weights) if plain else shared([x.instance for x in weights])
        parts = self._components([x.components for x in weights], normalize)
        found = zip(weights, maps, boxes, instance, parts, strict=True)
        return [replace(x, maps=m, boxes=b, instance=i, components=p) for x, m, b, i, p in found]

    def _components(
        self, parts: list[ComponentWeights | None], normalize: bool
    ) -> list[ComponentWeights | None]:
        """The same for the weights of predictions, if there are any."""
        if parts[0] is None:
            return parts
        cls = shared([torch.cat([x.cls, x.background]) for x in parts])
        box = shared([x.box for x in parts])
        if normalize:
            cls, box = (normalized(x, by=x.sum(dim=0)) for x in (cls, box))
        sizes = [len(parts[0].cls), len(parts[0].background)]
        return [
            ComponentWeights(c, b, background)
            for (c, background), b in zip((x.split(sizes) for x in cls), box, strict=True)
        ]

    def _measure(self, boxes: Tensor, weights: list[Weights]) -> Tensor:
        """What the weights (T, G) of boxes are normalised by: as one teacher's are, but the sum."""
        if self.by_instance:
            return boxes.sum(dim=0)
        level = next(iter(weights[0].maps))
        return shared([x.maps[level] for x in weights if level in x.maps]).sum(dim=0)


def shared(weights: list[Tensor]) -> Tensor:
    """The weights of T teachers times their share in the sum; 0 where all are 0.

    Args:
        weights: (...) of each.

    Returns:
        (T, ...)
    """
    weights = torch.stack(weights)
    total = weights.sum(dim=0)
    return weights * (weights / torch.where(total > 0, total, 1.0))
