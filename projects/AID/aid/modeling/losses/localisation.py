"""Localization distillation, LD (Zheng et al., CVPR 2022, arXiv 2102.12252).

Shape letter: S samples.
"""

from detectron2.config import CfgNode, configurable
from torch import Tensor

from ...utils.errors import check_positive
from ..families import PairedPredictions, PredictionRequest
from .base import DISTILLATION_LOSS_REGISTRY, PredictionLoss
from .functional import edge_divergences

__all__ = ["LocalisationLoss"]


@DISTILLATION_LOSS_REGISTRY.register()
class LocalisationLoss(PredictionLoss):
    """Divergence of box edge distributions, for heads that predict them.

        w_box,i * T^2 * KL(softmax(t_i / T) || softmax(s_i / T))

    with the logits t and s of the distance from sample i to an edge of its box: the mean over the
    four edges, over the samples of an image that match an instance, and over the batch. Samples
    whose prediction by the teacher is not finite have loss 0. The term is
    "loss_distill_localisation".
    """

    request = PredictionRequest(distributions=True)

    @configurable
    def __init__(self, *, temperature: float, weight: float):
        """
        Args:
            temperature: T.
            weight: weight of the term.

        Raises:
            AIDError: a temperature that is not positive.
        """
        check_positive("DISTILLATION.LOCALISATION.TEMPERATURE", temperature)
        super().__init__({"box": ("loss_distill_localisation", weight)})
        self.temperature = temperature

    @classmethod
    def arguments(cls, cfg: CfgNode) -> dict:
        keys = cfg.DISTILLATION.LOCALISATION
        return {"temperature": keys.TEMPERATURE, "weight": keys.WEIGHT}

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, temperature {self.temperature}"

    def sample_losses(self, predictions: PairedPredictions) -> dict[str, Tensor]:
        student, teacher = predictions.student.distributions, predictions.teacher.distributions
        assert student is not None and teacher is not None
        divergences = edge_divergences(student / self.temperature, teacher / self.temperature)
        return {"box": self.temperature**2 * divergences}
