"""Exponential moving average of a student's weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..utils.errors import AIDError

__all__ = ["WeightAverage"]


class WeightAverage:
    """Exponential moving average of the parameters and buffers of a plain detector.

        average = d * average + (1 - d) * weights,    d = min(decay, (1 + t) / (10 + t))

    after iteration t, counted from 0, so that the influence of the initial random weights decays
    quickly. Integer buffers are copied. Modules of the distillation are excluded.

    In a checkpoint "model" is the average; :meth:`state_dict` returns the student's own weights.

    Attributes:
        weights: {name: tensor}, the average.
    """

    def __init__(self, model: nn.Module, decay: float):
        """
        Args:
            model: detector without DDP wrapper; the average starts at its current weights.
            decay: upper limit of d.

        Raises:
            AIDError: the decay is not in [0, 1).
        """
        if not 0 <= decay < 1:
            raise AIDError(f"MODEL_EMA.DECAY is {decay}: it must be at least 0 and below 1")
        self._model = model
        self._decay = decay
        self.weights: dict[str, Tensor] = {}
        self.restart()

    def restart(self) -> None:
        """Set the average to the current weights."""
        self.weights = {name: x.clone() for name, x in self._own().items()}

    @torch.no_grad()
    def update(self, iteration: int) -> None:
        """Add the current weights to the average.

        Args:
            iteration: iteration of these weights, counted from 0.
        """
        decay = min(self._decay, (1 + iteration) / (10 + iteration))
        own = self._own()
        real = [name for name, x in own.items() if x.is_floating_point()]
        average = get_ema_multi_avg_fn(decay)
        average([self.weights[name] for name in real], [own[name] for name in real], None)
        for name in own.keys() - set(real):
            self.weights[name].copy_(own[name])

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """Exchange the student's weights and their average inside the context.

        Changes of the model inside the context, such as new statistics of norms, are changes of the
        average.
        """
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the student's own weights."""
        return self._own()

    @torch.no_grad()
    def load_state_dict(self, own: dict[str, Tensor]) -> None:
        """Set the average to the weights of the model, and then the model to its own weights.

        Args:
            own: output of :meth:`state_dict`.
        """
        self.restart()
        for name, x in self._own().items():
            x.copy_(own[name])

    @torch.no_grad()
    def _exchange(self) -> None:
        own = {name: x.clone() for name, x in self._own().items()}
        for name, x in self._own().items():
            x.copy_(self.weights[name])
        self.weights = own

    def _own(self) -> dict[str, Tensor]:
        state = self._model.state_dict()
        return {name: x for name, x in state.items() if not name.startswith("distillation.")}
