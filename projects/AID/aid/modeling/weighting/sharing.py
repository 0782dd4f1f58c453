"""Several teachers of one student: who is to be believed how much.

Shape letters: N images, G instances of the batch, (H, W) size of a level.
"""

from dataclasses import replace

import torch
from torch import Tensor

from .base import Weighting, Weights, normalized

__all__ = ["Sharing", "shared"]


class Sharing:
    """Divides each place among the teachers by what they are worth there.

    A teacher's weight w_t becomes w_t * w_t / sum_u w_u, over all teachers u: the shares are the
    softmax of -alpha * D where w = exp(-alpha * D). A level is shared by the teachers that have it.
    Normalisation (AID.NORMALIZE) comes afterwards, teacher by teacher.
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
        maps = [{} for _ in weights]
        for level in dict.fromkeys(level for x in weights for level in x.maps):
            having = [t for t, x in enumerate(weights) if level in x.maps]
            for t, part in zip(
                having, shared([weights[t].maps[level] for t in having]), strict=True
            ):
                maps[t][level] = part
        boxes = shared([x.boxes for x in weights])
        if weights[0].instance is None:
            return [
                replace(x, maps=m, boxes=b) for x, m, b in zip(weights, maps, boxes, strict=True)
            ]
        instance = shared([x.instance for x in weights])
        found = zip(weights, maps, boxes, instance, strict=True)
        found = [replace(x, maps=m, boxes=b, instance=i) for x, m, b, i in found]
        return [self._normalized(x) for x in found] if self.normalize else found

    def _normalized(self, weights: Weights) -> Weights:
        maps, first = weights.maps, next(iter(weights.maps.values()))
        boxes = normalized(weights.boxes, by=weights.boxes if self.by_instance else first)
        return replace(weights, maps={k: normalized(x) for k, x in maps.items()}, boxes=boxes)


def shared(weights: list[Tensor]) -> list[Tensor]:
    """Each teacher's weights times their share in the sum of all; 0 where all are 0."""
    total = torch.stack(torch.broadcast_tensors(*weights)).sum(dim=0)
    total = torch.where(total > 0, total, 1.0)
    return [w * (w / total) for w in weights]
