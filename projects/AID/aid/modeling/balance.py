"""Strength of distillation: the ratio of its gradient to that of the task loss."""

import logging
from collections.abc import Callable

import torch
from detectron2.utils import comm
from torch import Tensor, nn

from ..utils.errors import check_not_negative

__all__ = ["Balance", "GradientRatio"]

# The ratio is measured in each of the first iterations of imitation, where it changes fastest, then
# in every tenth, since it computes the gradients of the distillation losses a second time.
PERIOD = 10
# Weight of a new measurement in the running mean.
RATE = 0.3
# Loss scale of a measurement in half precision, in which gradients would underflow.
HALF_SCALE = 2.0**12


class GradientRatio(nn.Module):
    """Ratio of the gradients of task and distillation losses at the imitated feature maps.

    With g_task and g_imitation the gradients there of the detector's own losses and of the
    distillation losses, it is norm(g_task) / norm(g_imitation), with norms over all maps and all
    processes. g_imitation is computed by a separate backward pass to the maps; g_task is the
    difference of the whole gradient at the maps and g_imitation. It has no effect on training.
    """

    def __init__(self) -> None:
        super().__init__()
        # Squared norms of g_task and g_imitation in the iteration that is measured.
        self.register_buffer("squares", torch.zeros(2), persistent=False)
        self._iteration: int | None = None

    def measure(
        self,
        imitation: Tensor,
        weighted: Tensor,
        weight: float | Tensor,
        maps: list[Tensor],
        iteration: int,
    ) -> None:
        """Prepare the measurement in the next backward pass.

        Args:
            imitation: sum of the distillation losses, without factor.
            weighted: one of the losses that the trainer gets; its gradient is the factor by which
                the trainer multiplies losses, e.g. by a GradScaler.
            weight: factor on the distillation losses that the trainer gets.
            maps: student's features (N, C, H, W) of each level that is imitated.
            iteration: current iteration, counted from 0.
        """
        self._iteration = iteration
        maps = [x for x in maps if x.requires_grad]
        if not maps:
            return  # the squares stay 0
        half = any(x.dtype == torch.float16 for x in maps)
        scale = imitation.new_full((), HALF_SCALE if half else 1.0)
        gradients: tuple[Tensor | None, ...] = ()
        if imitation.requires_grad:
            gradients = torch.autograd.grad(
                imitation, maps, scale, retain_graph=True, allow_unused=True
            )
        if all(x is None for x in gradients):
            # The size of the task's gradient, which is not observed, does not matter.
            self.squares[0].clamp_(min=torch.finfo(self.squares.dtype).tiny)
            return
        multiplier: list[Tensor] = []
        weighted.register_hook(multiplier.append)
        for x, gradient in zip(maps, gradients, strict=True):
            if gradient is not None:
                x.register_hook(self._observer(gradient.float() / scale, weight, multiplier))

    def _observer(
        self, imitation: Tensor, weight: float | Tensor, multiplier: list[Tensor]
    ) -> Callable[[Tensor], None]:
        """Hook on a map that adds the squared norms of both gradients to :attr:`squares`."""

        def observe(gradient: Tensor) -> None:
            task = gradient.float() / multiplier[0].float() - weight * imitation
            norms = torch.stack([torch.linalg.vector_norm(x) for x in (task, imitation)])
            self.squares.add_(norms.square())

        return observe

    @torch.no_grad()
    def take(self, iteration: int | None = None) -> Tensor | None:
        """Take the last measurement; all processes call it together.

        Args:
            iteration: the iteration that begins; a measurement of this iteration is not complete,
                and is left for a later call. None: take it in any case.

        Returns:
            Logarithm of the ratio; infinite if the distillation losses alone have no gradient, NaN
            or -infinity if one of the gradients is not finite, or that of the task is 0; None
            without a measurement.
        """
        if self._iteration is None or self._iteration == iteration:
            return None
        self._iteration = None
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(self.squares)
        task, imitation = self.squares
        logarithm = torch.where(task.isfinite(), (task.log() - imitation.log()) / 2, torch.nan)
        self.squares.zero_()
        return logarithm


class Balance(GradientRatio):
    """Factor on the distillation losses that keeps the ratio of their gradient to the task's.

    With g_task and g_imitation of :class:`GradientRatio`,

        factor = ratio * norm(g_task) / norm(g_imitation)

    as a running geometric mean over the iterations in which it is measured, which is saved in
    checkpoints. It makes the result independent of the common scale of the distillation losses;
    only their proportion to each other matters. In the first iteration with imitation, before any
    measurement, the factor is 0. A warning is logged if it still is after the measurements of the
    first iterations.
    """

    def __init__(self, ratio: float):
        """
        Args:
            ratio: ratio of the gradient norms, see DISTILLATION.BALANCE.

        Raises:
            AIDError: the ratio is negative or not finite.
        """
        super().__init__()
        check_not_negative("DISTILLATION.BALANCE", ratio)
        self.ratio = ratio
        self.register_buffer("log_quotient", torch.zeros(()))
        self.register_buffer("num_measured", torch.zeros(()))
        self._num_updates = 0

    @property
    def factor(self) -> Tensor:
        """Factor on the distillation losses, a scalar; 0 before the first measurement."""
        factor = self.ratio * self.log_quotient.exp()
        return torch.where(self.num_measured > 0, factor, 0.0)

    @staticmethod
    def is_due(iteration: int) -> bool:
        """Whether the ratio is measured in an iteration, counted from the start of imitation."""
        return iteration < PERIOD or iteration % PERIOD == 0

    @torch.no_grad()
    def update(self, iteration: int | None = None) -> None:
        """Add the last measurement, if any, to the running mean; see :meth:`take`."""
        new = self.take(iteration)
        if new is None:
            return
        # Not finite without a distillation gradient, or if a step overflows in half precision.
        known = new.isfinite()
        self.num_measured.add_(known)
        rate = (1 / self.num_measured.clamp(min=1)).clamp(min=RATE)
        step = torch.where(known, rate * (new - self.log_quotient), 0.0)
        self.log_quotient.add_(step)
        self._num_updates += 1
        # Only now, since reading the number waits for the device.
        if self._num_updates == PERIOD and self.num_measured == 0:
            logging.getLogger(__name__).warning(
                "The ratio of gradients for DISTILLATION.BALANCE could not be measured in %d "
                "attempts: the distillation losses have weight 0, and the student does not "
                "imitate; no gradient of theirs, or of the detector's own losses, reaches the "
                "imitated feature maps, or gradients are not finite: check DISTILLATION.LOSSES, "
                "their weights and DISTILLATION.LEVELS, or set DISTILLATION.BALANCE to 0.0, which "
                "needs no measurement",
                PERIOD,
            )
