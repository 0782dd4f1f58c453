"""A weight that is free of the loss's scale."""

import torch
from detectron2.config import CfgNode, configurable
from detectron2.utils import comm
from torch import Tensor

from ...errors import AIDError
from .base import WEIGHTING_REGISTRY
from .exponential import ExponentialWeighting
from .structures import Evidence

__all__ = ["RelativeWeighting"]


@WEIGHTING_REGISTRY.register()
class RelativeWeighting(ExponentialWeighting):
    """w = exp(-alpha * D / mean D), with a running mean over the instances of all processes.

    An instance as hard as the mean has exp(-alpha), whatever the detector family, its loss weights
    and the state of training. A part of D is measured by the mean of the whole, so that the weights
    of all parts multiply to that of the instance.
    """

    @configurable
    def __init__(self, *, momentum: float, steps: int = 1, **kwargs):
        """
        Args:
            momentum: of the running mean, per iteration; its first values are means of what has
                been seen so far.
            steps: micro-batches in an iteration; this rule sees one at a time.

        Raises:
            AIDError: a momentum outside of [0, 1).
        """
        super().__init__(**kwargs)
        if not 0 <= momentum < 1:
            raise AIDError(f"AID.MOMENTUM is {momentum}: it must be in [0, 1)")
        self.momentum = momentum ** (1 / steps)
        self.register_buffer("sum_and_count", torch.zeros(2))

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {
            "momentum": cfg.AID.MOMENTUM,
            "steps": cfg.SOLVER.ACCUMULATION_STEPS,
            **super().from_config(cfg),
        }

    def observe(self, evidence: Evidence) -> None:
        if not self.training:
            return
        loss, _ = super().disbelief(evidence)
        finite = loss.isfinite()
        new = torch.stack([torch.where(finite, loss, 0.0).sum(), finite.sum()])
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(new)
        self.sum_and_count.mul_(self.momentum).add_(new)

    def disbelief(self, evidence: Evidence) -> tuple[Tensor, Tensor]:
        loss, background = super().disbelief(evidence)
        total, count = self.sum_and_count
        mean = torch.where(count > 0, total / count.clamp(min=1e-12), 1.0).clamp(min=1e-12)
        return loss / mean, background / mean
