"""Channel-wise distillation, CWD (Shu et al., ICCV 2021, arXiv 2011.13256).

Shape letters: N images, C channels, (H, W) size of a level.
"""

import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor

from .base import DISTILLATION_LOSS_REGISTRY, Context, SingleTermLoss, check_temperature
from .functional import spatial_log_softmax

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
    can_standardize = False  # the softmax has a temperature for that

    @configurable
    def __init__(self, *, temperature: float, **kwargs):
        """
        Args:
            temperature: T; small is sharp.
            kwargs: see :class:`SingleTermLoss`.

        Raises:
            AIDError: a temperature that is not positive.
        """
        super().__init__(**kwargs)
        check_temperature("DISTILLATION.CWD.TEMPERATURE", temperature)
        self.temperature = temperature

    @classmethod
    def from_config(cls, cfg: CfgNode, *shapes) -> dict:
        return {
            **super().from_config(cfg, *shapes),
            "temperature": cfg.DISTILLATION.CWD.TEMPERATURE,
        }

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, temperature {self.temperature}"

    def level(
        self, name: str, student: Tensor, teacher: Tensor, weights: Tensor, context: Context
    ) -> tuple[Tensor]:
        """See :class:`FeatureLoss`."""
        ours, theirs = (
            spatial_log_softmax(x / self.temperature, weights)
            for x in (self.adapters[name](student), teacher)
        )
        terms = F.kl_div(ours, theirs, reduction="none", log_target=True)
        terms = (terms - theirs.exp() + ours.exp()).mean(dim=1, keepdim=True)
        return (self.temperature**2 * (weights * terms).sum(dim=(1, 2, 3)).mean(),)
