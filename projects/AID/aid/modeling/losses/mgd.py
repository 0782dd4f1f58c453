"""Masked generative distillation, MGD (Yang et al., ECCV 2022, arXiv 2205.01529).

Shape letters: N images, C channels, (H, W) size of a level.
"""

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from ...utils.errors import AIDError
from .base import DISTILLATION_LOSS_REGISTRY, Context, SingleTermLoss, average_sum, check_scale

__all__ = ["MGDLoss"]


@DISTILLATION_LOSS_REGISTRY.register()
class MGDLoss(SingleTermLoss):
    """Error of the teacher's features generated from the student's masked features:

        sum over C, H, W of  w (F_t - G(mask * F_s))^2
        G(x) = conv3x3(ReLU(conv3x3(x)))

    averaged over the batch, with the weight map w; F_s is the student's behind the adapter. The
    mask is 0 at a random share of positions, in all channels, drawn for every image, level and
    step. Positions of weight 0 have no error, but their features still serve to generate those of
    their neighbors.

    DISTILLATION.SCALE "rms" turns the sum into a mean. The convolutions on the finest level make
    this the slowest of the losses.
    """

    term = "loss_distill_mgd"
    key = "MGD"

    @configurable
    def __init__(
        self,
        *,
        channels: dict[str, tuple[int, int]],
        masked_share: float,
        scale: str,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            channels: {level: (C_s, C_t)}.
            masked_share: lambda of the paper, share of masked positions, in [0, 1).
            scale: "sum" or "rms", see :func:`average_sum`.
            kwargs: see :class:`SingleTermLoss`.

        Raises:
            AIDError: a share outside of [0, 1), an unknown scale, or a negative weight.
        """
        super().__init__(channels=channels, **kwargs)
        check_scale(scale)
        if not 0 <= masked_share < 1:
            raise AIDError(
                f"DISTILLATION.MGD.MASKED_SHARE is {masked_share}: it must be at least 0, below 1"
            )
        self.generation = nn.ModuleDict({k: _generation(c) for k, (_, c) in channels.items()})
        self.masked_share = masked_share
        self.scale = scale
        self._random = torch.Generator()
        self._seed: int | None = None

    @classmethod
    def arguments(cls, cfg: CfgNode) -> dict:
        return {
            "masked_share": cfg.DISTILLATION.MGD.MASKED_SHARE,
            "scale": cfg.DISTILLATION.SCALE,
            **super().arguments(cfg),
        }

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, masked share {self.masked_share}, scale {self.scale}"

    def adapt(self, level: str, student: Tensor) -> Tensor:
        """Features (N, C_t, H, W) generated from the student's (N, C_s, H, W) without a mask."""
        return self.generation[level](self.adapters[level](student))

    def level(
        self, name: str, student: Tensor, teacher: Tensor, weights: Tensor, context: Context
    ) -> tuple[Tensor]:
        generated = self.generation[name](self._mask(weights) * self.adapters[name](student))
        squared = (teacher - generated).square().sum(dim=1, keepdim=True)
        sums = (weights * squared).sum(dim=(1, 2, 3))
        return (average_sum(sums, teacher[0].numel(), self.scale),)

    def _mask(self, like: Tensor) -> Tensor:
        """Random mask of 0 and 1, in the shape of ``like``.

        It has its own generator, to leave the random numbers of the student's training unchanged.
        This is seeded when the seed of torch's default generator changes, as it does in every
        iteration of a run: a resumed run has the same masks, and micro-batches have different ones.
        """
        if self._seed != torch.initial_seed():
            self._seed = torch.initial_seed()
            self._random.manual_seed(self._seed)
        kept = torch.rand(like.shape, generator=self._random) >= self.masked_share
        return kept.to(like, non_blocking=True)


def _generation(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Conv2d(channels, channels, kernel_size=3, padding=1),
    )
