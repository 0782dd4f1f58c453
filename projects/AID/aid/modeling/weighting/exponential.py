"""The weight of AID (arXiv 2201.11097)."""

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor

from ...errors import AIDError
from .base import WEIGHTING_REGISTRY, Weighting

__all__ = ["ExponentialWeighting"]


@WEIGHTING_REGISTRY.register()
class ExponentialWeighting(Weighting):
    """w = exp(-alpha * D), the weight of AID (arXiv 2201.11097)."""

    @configurable
    def __init__(self, *, alpha: float, **kwargs):
        """
        Args:
            alpha: how fast trust falls with the teacher's loss; 0 is plain distillation.

        Raises:
            AIDError: a negative alpha, which would trust the teacher most where it is worst.
        """
        super().__init__(**kwargs)
        if not alpha >= 0:
            raise AIDError(f"AID.ALPHA is {alpha}: it must be 0 or more")
        self.alpha = alpha

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {"alpha": cfg.AID.ALPHA, **super().from_config(cfg)}

    def __str__(self) -> str:
        return f"{super().__str__()}, alpha {self.alpha}"

    def weight(self, loss: Tensor) -> Tensor:
        return torch.exp(-self.alpha * loss)
