"""A weight by what the teacher finds, instead of its loss."""

from torch import Tensor

from .base import WEIGHTING_REGISTRY
from .exponential import ExponentialWeighting
from .structures import Evidence

__all__ = ["QualityWeighting"]

# An instance that the teacher does not find at all counts as one of this quality.
MIN_QUALITY = 0.01


@WEIGHTING_REGISTRY.register()
class QualityWeighting(ExponentialWeighting):
    """w = q ** alpha, with q the root of IoU times score of the teacher's best detection.

    Written as exp(-alpha * D) with D = -log q. The background, which has no detection, keeps the
    teacher's loss for D.
    """

    needs_quality = True

    def disbelief(self, evidence: Evidence) -> tuple[Tensor, Tensor]:
        _, background = super().disbelief(evidence)
        quality = (evidence.quality.score * evidence.quality.iou).sqrt()
        return -quality.clamp(min=MIN_QUALITY).log(), background
