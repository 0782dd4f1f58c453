"""Channel-wise distillation, CWD (Shu et al., ICCV 2021, arXiv 2011.13256).

Shape letters: N images, C channels, (H, W) size of a level.
"""

import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor

from .base import DISTILLATION_LOSS_REGISTRY, check_temperature
from .positions import position_log_softmax
from .single_term import SingleTermLoss

__all__ = ["CWDLoss"]


@DISTILLATION_LOSS_REGISTRY.register()
class CWDLoss(SingleTermLoss):
    """Imitate where each channel is active (the paper's channel-wise distillation):

        T^2 / C * sum over C of KL(phi(F_t) || phi(F_s))
        phi(F) = softmax over positions of F / T

    averaged over the batch; F_s is the student's after the adapter. A weight map w multiplies the
    terms of the divergence, position by position, which are written such that none is negative:

        KL(p || q) = sum over positions of  w (p log(p / q) - p + q)

    What is added to p log(p / q) sums up to 0 where w is even. phi is over the positions whose
    weight is not 0. Does not read DISTILLATION.SCALE.
    """

    term = "loss_distill_cwd"
    key = "CWD"

    @configurable
    def __init__(self, *, channels: dict[str, tuple[int, int]], temperature: float, weight: float):
        """
        Args:
            channels: (C_s, C_t) of each level.
            temperature: T; small is sharp.
            weight: of the loss.

        Raises:
            AIDError: a temperature that is not positive.
        """
        super().__init__(channels=channels, weight=weight)
        check_temperature("DISTILLATION.CWD.TEMPERATURE", temperature)
        self.temperature = temperature

    @classmethod
    def from_config(cls, cfg: CfgNode, *shapes) -> dict:
        return {
            "temperature": cfg.DISTILLATION.CWD.TEMPERATURE,
            **super().from_config(cfg, *shapes),
        }

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, temperature {self.temperature}"

    def level(self, name: str, student: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
        """See :class:`SingleTermLoss`."""
        ours, theirs = (
            position_log_softmax(x / self.temperature, weights) for x in (student, teacher)
        )
        terms = F.kl_div(ours, theirs, reduction="none", log_target=True)
        terms = (terms - theirs.exp() + ours.exp()).mean(dim=1, keepdim=True)
        return self.temperature**2 * (weights * terms).sum(dim=(1, 2, 3)).mean()
