"""The strength of imitation, set by the ratio of its gradient to the task's."""

import torch
from detectron2.utils import comm
from torch import Tensor, nn

from ..utils.errors import AIDError

__all__ = ["Balance"]

# Measured in each of the first iterations, where the ratio changes fastest, then in every tenth:
# the gradients of imitation are computed once more in these.
PERIOD = 10
# Weight of a new measurement in the running mean.
RATE = 0.3
# Half-precision gradients of imitation underflow without it.
HALF_SCALE = 2.0**12


class Balance(nn.Module):
    """A factor on the losses of imitation that holds their gradient in proportion to the task's.

    The two meet at the feature maps that are imitated. With g_task and g_imitation the gradients
    there of the detector's losses and of those of imitation,

        factor = ratio * norm(g_task) / norm(g_imitation)

    in a running mean of its logarithm over the iterations in which it is measured, with norms over
    all maps and all processes. So neither the weights nor the units of the losses matter, only
    their proportion to each other. Nothing is known at the first iteration of a run: it measures,
    and the factor is 0.

    The gradient of imitation is taken by itself, which stops at the maps; that of the task is what
    is left of the whole gradient as it passes there. What the factor remembers is kept in
    checkpoints.
    """

    def __init__(self, ratio: float):
        """
        Args:
            ratio: of the gradients' norms, see DISTILLATION.BALANCE.

        Raises:
            AIDError: it is negative or not finite.
        """
        super().__init__()
        if not 0 <= ratio < float("inf"):
            raise AIDError(
                f"DISTILLATION.BALANCE is {ratio}: it must be 0 (off) or a positive ratio"
            )
        self.ratio = ratio
        self.register_buffer("log_quotient", torch.zeros(()))
        self.register_buffer("num_measured", torch.zeros(()))
        # Squared norms of the task and of imitation in the iteration that is being measured.
        self.register_buffer("squares", torch.zeros(2), persistent=False)
        self._iteration: int | None = None

    @property
    def factor(self) -> Tensor:
        """The factor, a scalar; 0 as long as nothing was measured."""
        factor = self.ratio * self.log_quotient.exp()
        return torch.where(self.num_measured > 0, factor, 0.0)

    @staticmethod
    def is_due(iteration: int) -> bool:
        """Whether an iteration, counted from 0, is measured."""
        return iteration < PERIOD or iteration % PERIOD == 0

    def measure(
        self,
        imitation: Tensor,
        weighted: Tensor,
        weight: Tensor,
        maps: list[Tensor],
        iteration: int,
    ) -> None:
        """Have the coming backward pass of a batch measured.

        Args:
            imitation: the sum of the losses of imitation, without factor.
            weighted: one of the losses that is handed to the trainer, by whose gradient it is known
                what the trainer multiplies losses by, as a GradScaler does.
            weight: the factor that is on these losses.
            maps: (N, C, H, W) of each level that is imitated.
            iteration: counted from 0.
        """
        half = any(x.dtype == torch.float16 for x in maps)
        scale = imitation.new_full((), HALF_SCALE if half else 1.0)
        gradients = torch.autograd.grad(
            imitation, maps, scale, retain_graph=True, allow_unused=True
        )
        self._iteration = iteration
        multiplier = []
        weighted.register_hook(multiplier.append)
        for x, gradient in zip(maps, gradients, strict=True):
            if gradient is not None:
                x.register_hook(self._observer(gradient.float() / scale, weight, multiplier))

    def _observer(self, imitation: Tensor, weight: Tensor, multiplier: list[Tensor]):
        def observe(gradient: Tensor) -> None:
            task = gradient.float() / multiplier[0].float() - weight * imitation
            norms = torch.stack([torch.linalg.vector_norm(x) for x in (task, imitation)])
            self.squares.add_(norms.square())

        return observe

    @torch.no_grad()
    def update(self, iteration: int | None = None) -> None:
        """Take in what was measured; to be called by all processes after a backward pass.

        Args:
            iteration: that begins: what belongs to it is left for later. None: all is taken.
        """
        if self._iteration is None or self._iteration == iteration:
            return
        self._iteration = None
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(self.squares)
        task, imitation = self.squares
        new = (task.log() - imitation.log()) / 2
        # Nothing to imitate, or a step that overflowed in half precision.
        known = new.isfinite()
        self.num_measured.add_(known)
        rate = (1 / self.num_measured.clamp(min=1)).clamp(min=RATE)
        step = torch.where(known, rate * (new - self.log_quotient), 0.0)
        self.log_quotient.add_(step)
        self.squares.zero_()
