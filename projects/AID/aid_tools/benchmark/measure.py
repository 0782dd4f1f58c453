"""Measurement of time and memory of all cases."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory

import torch
from detectron2.config import CfgNode

from aid.utils.errors import AIDError
from aid.utils.malloc import keep_freed_memory

from .cases import MEMORY_CASES, balance_cases, make_cases
from .inputs import random_batch
from .memory import can_measure, measure_memory
from .nets import Nets, num_bytes, write_teacher_weights
from .results import TEACHER_WEIGHTS, Results
from .settings import Settings, precision_of
from .sweep import Sweep, measure_sweeps
from .timing import MIN_ROUNDS, as_in_training, time_rounds

__all__ = ["measure", "measure_sweep", "random_teacher"]


def measure(
    settings: Settings, *, repeat: int, seconds: float | None = None, memory: bool = True
) -> Results:
    """Time all cases in this process, then measure the memory of each in a process of its own.

    Args:
        settings: settings of the measurement.
        repeat: see :func:`~aid_tools.benchmark.timing.time_rounds`.
        seconds: see :func:`~aid_tools.benchmark.timing.time_rounds`.
        memory: whether to measure memory, if this system supports it.

    Raises:
        AIDError: settings, rounds or config are invalid.
    """
    _check_rounds(repeat, seconds)
    with random_teacher(settings) as (cfg, batch):
        rounds, losses, teacher_bytes = _time(cfg, settings, batch, repeat, seconds)
        # Free memory for the processes that measure memory.
        gc.collect()
        torch.cuda.empty_cache()
        peaks = {}
        if memory and can_measure(torch.device(settings.device)):
            names = (*MEMORY_CASES, *balance_cases(cfg))
            peaks = measure_memory(settings, cfg.TEACHER.WEIGHTS, names)
            peaks[TEACHER_WEIGHTS] = teacher_bytes
    return Results(rounds, losses, peaks, settings.batch)


def measure_sweep(settings: Settings, *, repeat: int, seconds: float | None = None) -> list[Sweep]:
    """Run :func:`~aid_tools.benchmark.sweep.measure_sweeps`; raises as :func:`measure`."""
    _check_rounds(repeat, seconds)
    with random_teacher(settings) as (cfg, batch):
        nets = Nets(cfg, batch[:1])
        return measure_sweeps(settings, nets, repeat=repeat, seconds=seconds)


def _time(
    cfg: CfgNode, settings: Settings, batch: list[dict], repeat: int, seconds: float | None
) -> tuple[list[dict[str, float]], tuple[str, ...], int]:
    """Return rounds, names of the distillation losses and bytes of the teacher's weights."""
    nets = Nets(cfg, batch[:1])
    cases = make_cases(nets, batch)
    rounds = time_rounds(cases, nets.device, seed=settings.seed, repeat=repeat, seconds=seconds)
    losses = tuple(nets.distilled.model.distillation["losses"])
    return rounds, losses, num_bytes(nets.teacher.detector)


@contextmanager
def random_teacher(settings: Settings) -> Iterator[tuple[CfgNode, list[dict]]]:
    """Yield the student's config, with a temporary file of the teacher's weights, and its input.

    Raises:
        AIDError: see :meth:`Settings.apply`; or the device lacks the config's precision, or memory.
    """
    cfg = settings.apply()
    if precision_of(cfg) == torch.float16 and torch.device(settings.device).type == "cpu":
        raise AIDError(
            "SOLVER.AMP.ENABLED is on, but --device is cpu: mixed precision needs a GPU, or "
            "SOLVER.AMP.DTYPE bfloat16"
        )
    batch = random_batch(settings, cfg)
    with TemporaryDirectory() as folder:
        cfg.TEACHER.WEIGHTS = os.path.join(folder, "teacher.pth")
        write_teacher_weights(cfg, batch[:1], cfg.TEACHER.WEIGHTS)
        if settings.device == "cpu":
            keep_freed_memory()  # as the trainer does
        try:
            with as_in_training(torch.device(settings.device)):
                yield cfg, batch
        except torch.OutOfMemoryError as error:
            raise AIDError(
                "the GPU is out of memory: choose a smaller --size or --batch"
            ) from error


def _check_rounds(repeat: int, seconds: float | None) -> None:
    if repeat < MIN_ROUNDS:
        raise AIDError(f"--repeat: {repeat} is below {MIN_ROUNDS}")
    if seconds is not None and not seconds > 0:
        raise AIDError(f"--seconds: {seconds} is not above 0")
