"""Channel-wise distillation, CWD (Shu et al., ICCV 2021, arXiv 2011.13256).

Shape letters: N images, C channels, (H, W) size of a level.
"""

from typing import Any

import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor

from ...utils.errors import check_positive
from .base import DISTILLATION_LOSS_REGISTRY, Context, SingleTermLoss
from .functional import spatial_log_softmax

__all__ = ["CWDLoss"]


@DISTILLATION_LOSS_REGISTRY.register()
class CWDLoss(SingleTermLoss):
    """Divergence of the spatial distributions of each channel (the paper's channel-wise loss).

        T^2 / C * sum over C of KL(phi(F_t) || phi(F_s))
        phi(F) = softmax over positions of F / T

    averaged over the batch, with F_s behind the adapter. The weight map w multiplies the terms of
    the divergence, which are written such that none is negative:

        KL(p || q) = sum over positions of  w (p log(p / q) - p + q)

    For a constant w the added terms, q - p, sum to 0. phi is over the positions whose weight is not
    0. DISTILLATION.SCALE is not read.
    """

    term = "loss_distill_cwd"
    key = "CWD"
    can_standardize = False  # the temperature sets the scale of the softmax

    @configurable
    def __init__(self, *, temperature: float, **kwargs: Any) -> None:
        """
        Args:
            temperature: T; the smaller, the sharper.
            kwargs: see :class:`SingleTermLoss`.

        Raises:
            AIDError: a temperature that is not positive.
        """
        super().__init__(**kwargs)
        check_positive("DISTILLATION.CWD.TEMPERATURE", temperature)
        self.temperature = temperature

    @classmethod
    def arguments(cls, cfg: CfgNode) -> dict:
        return {**super().arguments(cfg), "temperature": cfg.DISTILLATION.CWD.TEMPERATURE}

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, temperature {self.temperature}"

    def level(
        self, name: str, student: Tensor, teacher: Tensor, weights: Tensor, context: Context
    ) -> tuple[Tensor]:
        log_q, log_p = (
            spatial_log_softmax(x / self.temperature, weights)
            for x in (self.adapters[name](student), teacher)
        )
        terms = F.kl_div(log_q, log_p, reduction="none", log_target=True)
        terms = (terms - log_p.exp() + log_q.exp()).mean(dim=1, keepdim=True)
        return (self.temperature**2 * (weights * terms).sum(dim=(1, 2, 3)).mean(),)
