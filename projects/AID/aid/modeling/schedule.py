"""Schedule of the distillation weight over a run."""

import math

from detectron2.config import CfgNode, configurable

from ..utils.errors import AIDError
from ..utils.text import counted

__all__ = ["Schedule"]

DECAYS = ("none", "linear", "cosine")


class Schedule:
    """Factor in [0, 1] on DISTILLATION.WEIGHT as a function of the iteration, without state.

    It is 0 before ``start`` and from ``end`` on. From ``start`` it rises linearly, as (k + 1) /
    (``warmup`` + 1) after k iterations; from the end of the warm-up on it decays to 0 at ``end``.
    """

    @configurable
    def __init__(
        self, *, start: int = 0, end: int = 0, warmup: int = 0, decay: str = "none", max_iter: int
    ):
        """
        Args:
            start: first iteration with distillation, counted from 0.
            end: first iteration without it again; 0: none, and a decay reaches 0 at ``max_iter``.
            warmup: number of iterations of the warm-up.
            decay: "none", "linear" or "cosine".
            max_iter: number of iterations of the run.

        Raises:
            AIDError: an unknown decay, or inconsistent numbers.
        """
        keys = "DISTILLATION.SCHEDULE"
        if decay not in DECAYS:
            known = ", ".join(DECAYS)
            raise AIDError(f"{keys}.DECAY: {decay!r} is unknown, choose one of {known}")
        for key, value in (("START_ITER", start), ("END_ITER", end), ("WARMUP_ITERS", warmup)):
            if value < 0:
                raise AIDError(f"{keys}.{key} is {value}: it must be 0 or more")
        last = end or max_iter
        if start >= min(last, max_iter):
            raise AIDError(
                f"{keys}.START_ITER is {start}, END_ITER {end}, SOLVER.MAX_ITER {max_iter}: no "
                "iteration would distill; START_ITER must be less than both (END_ITER 0: no end)"
            )
        if warmup > last - start:
            raise AIDError(
                f"{keys}.WARMUP_ITERS is {warmup}, longer than the "
                f"{counted(last - start, 'iteration')} from START_ITER {start} to the end at "
                f"{last}: shorten it"
            )
        self.start, self.end, self.warmup, self.decay = start, end, warmup, decay
        self._falling = max(1, last - start - warmup)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        keys = cfg.DISTILLATION.SCHEDULE
        return {
            "start": keys.START_ITER,
            "end": keys.END_ITER,
            "warmup": keys.WARMUP_ITERS,
            "decay": keys.DECAY,
            "max_iter": cfg.SOLVER.MAX_ITER,
        }

    def __str__(self) -> str:
        return (
            f"from iteration {self.start} to {self.end or 'the end'}, warm-up {self.warmup}, "
            f"decay {self.decay}"
        )

    def __call__(self, iteration: int) -> float:
        """Factor at an iteration, counted from 0."""
        if iteration < self.start or 0 < self.end <= iteration:
            return 0.0
        done = iteration - self.start
        if done < self.warmup:
            return (done + 1) / (self.warmup + 1)
        progress = min(1.0, (done - self.warmup) / self._falling)
        if self.decay == "linear":
            return 1 - progress
        if self.decay == "cosine":
            return (1 + math.cos(math.pi * progress)) / 2
        return 1.0
