"""Gradient accumulation over micro-batches, for batches that do not fit into memory."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.utils.events import EventStorage
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from .finite import check_finite, naming_images

__all__ = ["AccumulatingAMPTrainer", "AccumulatingTrainer"]


class AccumulatingTrainer(SimpleTrainer):
    """Trainer whose optimizer step uses the mean gradient of several micro-batches.

    The logged losses are means over the micro-batches. Scalars that the model logs itself are those
    of the last micro-batch.
    """

    def __init__(self, model, data_loader, optimizer, steps: int = 1, **kwargs):
        """
        Args:
            model, data_loader, optimizer: see :class:`SimpleTrainer`; the loader yields
                micro-batches.
            steps: number of micro-batches per iteration; 1 is Detectron2's trainer.
        """
        super().__init__(model, data_loader, optimizer, **kwargs)
        self.steps = steps

    def run_step(self) -> None:
        """Run one iteration.

        Raises:
            AIDError, FloatingPointError: losses of this process are not finite, see
                :func:`~aid.engine.finite.check_finite`.
        """
        assert self.model.training, "the model was changed to eval mode"
        self.optimizer.zero_grad()
        data_time, batches, losses = 0.0, [], []
        for step in range(self.steps):
            start = time.perf_counter()
            data = next(self._data_loader_iter)
            data_time += time.perf_counter() - start
            with nullcontext() if step == self.steps - 1 else self._before_last_step():
                with naming_images(data):
                    terms = self._forward(data)
                self._backward(sum(terms.values()) / self.steps)
            batches.append(data)
            losses.append({name: term.detach() for name, term in terms.items()})
        self.after_backward()
        distillers = getattr(getattr(self.model, "module", self.model), "distillers", [])
        for terms, data in zip(losses, batches, strict=True):
            check_finite(terms, data, (x.teacher for x in distillers))
        means = {name: sum(x[name] for x in losses) / self.steps for name in losses[0]}
        self._write_metrics(means, data_time)
        self._update()

    @contextmanager
    def _before_last_step(self) -> Iterator[None]:
        """Disable the synchronization of gradients, and discard what the model logs."""
        distributed = isinstance(self.model, DistributedDataParallel)
        with EventStorage(self.iter), self.model.no_sync() if distributed else nullcontext():
            yield

    def _forward(self, data: list[dict]) -> dict[str, Tensor]:
        return self.model(data)

    def _backward(self, loss: Tensor) -> None:
        loss.backward()

    def _update(self) -> None:
        self.optimizer.step()


class AccumulatingAMPTrainer(AccumulatingTrainer, AMPTrainer):
    """AccumulatingTrainer with mixed precision; the gradient scale is constant in an iteration."""

    def __init__(
        self, model, data_loader, optimizer, steps: int = 1, precision: torch.dtype = torch.float16
    ):
        """
        Args:
            model, data_loader, optimizer, steps: see :class:`AccumulatingTrainer`.
            precision: precision of the forward pass. Gradients are scaled in float16 only:
                bfloat16 has the range of float32.
        """
        self._device = next(model.parameters()).device.type
        scaler = torch.amp.GradScaler(self._device, enabled=precision == torch.float16)
        super().__init__(
            model, data_loader, optimizer, steps, grad_scaler=scaler, precision=precision
        )

    def _forward(self, data: list[dict]) -> dict[str, Tensor]:
        with torch.autocast(self._device, dtype=self.precision):
            return self.model(data)

    def _backward(self, loss: Tensor) -> None:
        self.grad_scaler.scale(loss).backward()

    def _update(self) -> None:
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def load_state_dict(self, state_dict: dict) -> None:
        # A run may be resumed in another precision: only float16 has a scale.
        scale = state_dict.get("grad_scaler") or self.grad_scaler.state_dict()
        super().load_state_dict({**state_dict, "grad_scaler": scale})
