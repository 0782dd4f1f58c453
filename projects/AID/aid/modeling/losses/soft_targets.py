"""What losses on soft targets (Hinton et al., arXiv 1503.02531) share.

Shape letters: N images, S samples.
"""

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor

from ..instance_loss.base import mean_by
from .base import DistillationLoss, check_temperature

__all__ = [
    "SoftTargetLoss",
    "edge_divergences",
    "finite_only",
    "mean_over_images",
    "softmax_divergences",
]


class SoftTargetLoss(DistillationLoss):
    """A loss of one term with a temperature and a weight; a subclass has ``asks`` and ``terms``.

    Attributes:
        key: of its part of cfg.DISTILLATION.
    """

    key: str

    @configurable
    def __init__(self, *, temperature: float, weight: float):
        """
        Args:
            temperature: T.
            weight: of the loss.

        Raises:
            AIDError: a temperature that is not positive.
        """
        super().__init__()
        check_temperature(f"DISTILLATION.{self.key}.TEMPERATURE", temperature)
        self.temperature = temperature
        self.weight = weight

    @classmethod
    def from_config(cls, cfg: CfgNode, levels, student_shapes, teacher_shapes) -> dict:
        keys = cfg.DISTILLATION[cls.key]
        return {"temperature": keys.TEMPERATURE, "weight": keys.WEIGHT}

    def extra_repr(self) -> str:
        return f"weight {self.weight}, temperature {self.temperature}"


def softmax_divergences(ours: Tensor, theirs: Tensor) -> Tensor:
    """KL(softmax(theirs) || softmax(ours)) over the last dimension of logits."""
    ours, theirs = (x.log_softmax(dim=-1) for x in (ours, theirs))
    return F.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=-1)


def finite_only(theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Which of the teacher's answers (S, ...) are finite, (S,), and all with 0 for the others."""
    finite = theirs.flatten(1).isfinite().all(dim=1)
    return finite, torch.where(finite.view(-1, *[1] * (theirs.dim() - 1)), theirs, 0.0)


def edge_divergences(ours: Tensor, theirs: Tensor) -> Tensor:
    """KL(softmax(theirs) || softmax(ours)) of logits (S, 4, bins), the mean over the edges (S,).

    0 where the teacher's answer is not finite.
    """
    finite, theirs = finite_only(theirs)
    return torch.where(finite, softmax_divergences(ours, theirs).mean(dim=1), 0.0)


def mean_over_images(
    losses: Tensor, image: Tensor, num_images: int, here: Tensor | None = None
) -> Tensor:
    """The mean of the samples (S,) of each image, averaged over all images.

    Args:
        losses, image: (S,).
        num_images: all of them.
        here: (S,), bool, the samples that count; all by default.
    """
    if here is not None:  # to select them would wait for the device
        image = torch.where(here, image, num_images)
        losses = torch.where(here, losses, 0.0)
    return mean_by(image, losses, num_images)[0].mean()
