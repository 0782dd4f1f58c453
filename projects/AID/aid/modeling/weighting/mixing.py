"""Mixing of the imitation weights of several teachers.

Shape letters: T teachers, N images, G instances of the batch.
"""

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from ...utils.errors import AIDError
from .base import Weighting
from .maps import normalized
from .structures import ComponentWeights, Weights

__all__ = ["TeacherMixing", "mix"]


class TeacherMixing:
    """Mixes the weights of several teachers, position by position, and normalizes; see :func:`mix`.

    The weights of a level are those of the teachers that have it. Normalization (AID.NORMALIZE)
    follows the mixing and divides by the mean of the teachers' sum over the batch: of maps level by
    level, of predicted classes over the instances and the background of each image, of predicted
    boxes over the instances.
    """

    def __init__(self, weightings: list[Weighting]):
        """
        Args:
            weightings: rule of each teacher.

        Raises:
            AIDError: no rule, or rules of different classes, granularity or normalization, whose
                weights cannot be mixed.
        """
        kinds = {(type(x).__name__, x.granularity, x.normalize): None for x in weightings}
        if len(kinds) != 1:
            found = "; ".join(
                f"{name} by {granularity}, normalize {normalize}"
                for name, granularity, normalize in kinds
            )
            raise AIDError(
                f"weighting rules of {len(weightings)} teachers: {found or 'none'}: give at least "
                "one teacher, and all teachers the same rule, AID.GRANULARITY and AID.NORMALIZE"
            )
        self.normalize = weightings[0].normalize

    def __call__(self, weights: list[Weights]) -> list[Weights]:
        """Mix the weights of T teachers.

        Args:
            weights: imitation weights of each teacher.

        Returns:
            Mixed weights of each teacher, with unchanged losses D. Those of a single teacher change
            by the normalization alone.
        """
        if len(weights) == 1 and not self.normalize:
            return weights
        plain = weights[0].instance is None  # a rule without statistics, which is not normalized
        normalize = self.normalize and not plain
        maps: list[dict[str, Tensor]] = [{} for _ in weights]
        for level in dict.fromkeys(level for x in weights for level in x.maps):
            teachers = [t for t, x in enumerate(weights) if level in x.maps]
            mixed = mix([weights[t].maps[level] for t in teachers])
            if normalize:
                mixed = normalized(mixed)
            for t, of_teacher in zip(teachers, mixed, strict=True):
                maps[t][level] = of_teacher
        instance: Iterable[Tensor | None] = [None] * len(weights)
        if not plain:
            instance = mix([x.instance for x in weights if x.instance is not None])
        components = self._components([x.components for x in weights], normalize)
        parts = zip(weights, maps, instance, components, strict=True)
        return [replace(x, maps=m, instance=i, components=c) for x, m, i, c in parts]

    def _components(
        self, weights: list[ComponentWeights | None], normalize: bool
    ) -> list[ComponentWeights | None]:
        """Mixed weights of predictions; None for a teacher whose losses need none."""
        given = [x for x in weights if x is not None]
        if not given:
            return weights
        cls = mix([torch.cat([x.cls, x.background]) for x in given])
        box = mix([x.box for x in given])
        if normalize:
            cls, box = (normalized(x) for x in (cls, box))
        sizes = [len(given[0].cls), len(given[0].background)]
        pairs = zip((x.split(sizes) for x in cls), box, strict=True)
        mixed = iter([ComponentWeights(c, b, background) for (c, background), b in pairs])
        return [None if x is None else next(mixed) for x in weights]


def mix(weights: list[Tensor]) -> Tensor:
    """Multiply the weights of T teachers by their share in the sum, w_t * w_t / sum_u w_u.

    For w = exp(-alpha * D) the shares are the softmax of -alpha * D over the teachers.

    Args:
        weights: T tensors of one shape (...).

    Returns:
        (T, ...), 0 where all weights are 0.
    """
    stacked = torch.stack(weights)
    total = stacked.sum(dim=0)
    return stacked * (stacked / torch.where(total > 0, total, 1.0))
