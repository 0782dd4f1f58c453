"""Hint-based distillation, FitNets (Romero et al., ICLR 2015, arXiv 1412.6550).

Shape letters: N images, C channels, (H, W) size of a level.
"""

from torch import Tensor

from .base import DISTILLATION_LOSS_REGISTRY, Context, SingleTermLoss

__all__ = ["FitNetLoss"]


@DISTILLATION_LOSS_REGISTRY.register()
class FitNetLoss(SingleTermLoss):
    """Half the mean squared error of features (section 2.2), with the weight map w:

        1/2 mean over C, H, W of  w (F_t - adapter(F_s))^2

    The paper sums over the elements, trains the student's lower half by this loss alone, and has no
    weight for it. Beside a task loss the mean is used, whatever DISTILLATION.SCALE is.
    """

    term = "loss_distill_fitnet"
    key = "FITNET"

    def adapt(self, level: str, student: Tensor) -> Tensor:
        """Student's features (N, C_s, H, W) behind the adapter: (N, C_t, H, W)."""
        return self.adapters[level](student)

    def level(
        self, name: str, student: Tensor, teacher: Tensor, weights: Tensor, context: Context
    ) -> tuple[Tensor]:
        squared = (teacher - self.adapt(name, student)).square().mean(dim=1, keepdim=True)
        return ((weights * squared).mean() / 2,)
