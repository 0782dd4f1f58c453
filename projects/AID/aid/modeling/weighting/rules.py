"""Weighting rules. Importing the module registers them."""

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor

from ...utils.errors import check_not_negative
from .base import WEIGHTING_REGISTRY, Weighting
from .structures import ComponentWeights, TeacherStats, Weights

__all__ = ["ConstantWeighting", "ExponentialWeighting"]


@WEIGHTING_REGISTRY.register()
class ExponentialWeighting(Weighting):
    """w = exp(-alpha * D), the weight of AID (arXiv 2201.11097)."""

    @configurable
    def __init__(self, *, alpha: float, **kwargs: Any) -> None:
        """
        Args:
            alpha: rate at which the weight decreases with D; 0 is plain distillation.

        Raises:
            AIDError: a negative alpha, with which weights would increase with D, or an infinite
                one.
        """
        super().__init__(**kwargs)
        check_not_negative("AID.ALPHA", alpha)
        self.alpha = alpha

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {"alpha": cfg.AID.ALPHA, **super().from_config(cfg)}

    def __str__(self) -> str:
        return f"{super().__str__()}, alpha {self.alpha}"

    def weight(self, loss: Tensor) -> Tensor:
        return torch.exp(-self.alpha * loss)


@WEIGHTING_REGISTRY.register()
class ConstantWeighting(Weighting):
    """w = constant, everywhere.

    With the mean weight of another rule, it is the control for that rule: the same mean strength of
    distillation without adaptivity.
    """

    @configurable
    def __init__(self, *, constant: float, **kwargs: Any) -> None:
        """
        Args:
            constant: the weight of every instance and of the background.

        Raises:
            AIDError: a negative or infinite weight.
        """
        super().__init__(**kwargs)
        check_not_negative("AID.CONSTANT", constant)
        self.constant = constant

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {"constant": cfg.AID.CONSTANT, **super().from_config(cfg)}

    def __str__(self) -> str:
        return f"constant {self.constant}"

    @property
    def requires_stats(self) -> bool:
        return False

    def forward(self, stats: TeacherStats | None, boxes: list[Tensor], levels: dict) -> Weights:
        plain = super().forward(None, boxes, levels)
        return Weights({level: self.constant * x for level, x in plain.maps.items()})

    def component_weights(
        self, stats: TeacherStats | None, boxes: list[Tensor]
    ) -> ComponentWeights:
        ones = super().component_weights(None, boxes)
        return ComponentWeights(*(self.constant * x for x in (ones.cls, ones.box, ones.background)))
