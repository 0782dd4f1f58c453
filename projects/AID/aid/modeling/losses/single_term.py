"""Losses of one term: the sum over the levels of what the two maps of a level differ by."""

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from .base import Context, channels_of, make_adapters

__all__ = ["SingleTermLoss"]


class SingleTermLoss(nn.Module):
    """A subclass says in :meth:`level` what a level costs.

    Attributes:
        term: name of the loss.
        key: of its part of cfg.DISTILLATION.
    """

    term: str
    key: str

    @configurable
    def __init__(self, *, channels: dict[str, tuple[int, int]], weight: float):
        """
        Args:
            channels: (C_s, C_t) of each level.
            weight: of the loss.
        """
        super().__init__()
        self.adapters = make_adapters(channels)
        self.weight = weight

    @classmethod
    def from_config(cls, cfg: CfgNode, levels, student_shapes, teacher_shapes) -> dict:
        return {
            "channels": channels_of(levels, student_shapes, teacher_shapes),
            "weight": cfg.DISTILLATION[cls.key].WEIGHT,
        }

    def extra_repr(self) -> str:
        return f"weight {self.weight}"

    def level(self, name: str, student: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
        """The cost of one level, averaged over the batch.

        Args:
            name: of the level.
            student, teacher: (N, C_t, H, W), the student's after the adapter.
            weights: (N, 1, H, W).

        Returns:
            A scalar.
        """
        raise NotImplementedError

    def forward(
        self,
        student: dict[str, Tensor],
        teacher: dict[str, Tensor],
        weights: dict[str, Tensor],
        context: Context,
    ) -> dict[str, Tensor]:
        """See DISTILLATION_LOSS_REGISTRY.

        Returns:
            One scalar, :attr:`term`.
        """
        costs = [
            self.level(name, adapter(student[name]), teacher[name], weights[name])
            for name, adapter in self.adapters.items()
        ]
        return {self.term: self.weight * torch.stack(costs).sum()}
