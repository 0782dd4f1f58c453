"""Interleaved timing of several cases."""

import time
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

import torch
from detectron2.utils.events import EventStorage
from tqdm import tqdm

from aid.modeling.balance import PERIOD

from .cases import Case

__all__ = ["MIN_ROUNDS", "ORDINARY", "as_in_training", "run_once", "time_rounds"]

MIN_ROUNDS = 3
# Untimed rounds; a GPU needs more of them to select its algorithms and raise its clock.
WARM_UP = {"cpu": 1, "cuda": 3}
# An iteration at which nothing is logged and no gradient is measured.
ORDINARY = PERIOD + 1


def time_rounds(
    cases: dict[Hashable, Case],
    device: torch.device,
    *,
    seed: int,
    repeat: int,
    seconds: float | None = None,
) -> list[dict[Hashable, float]]:
    """Time all cases in every round, after a warm-up; call within :func:`as_in_training`.

    Cases are interleaved, so that a slow phase of the machine affects all of them: compare times
    of the same round.

    Args:
        cases: {name: case}.
        device: device of the cases, which is synchronized for each time.
        seed: random seed of every run, so that all rounds do the same work.
        repeat: maximum number of rounds.
        seconds: limit of the total time, which reduces the number of rounds to at least 3; None for
            no limit.

    Returns:
        For every round, the seconds of each case.
    """
    warm_up = WARM_UP[device.type]
    with tqdm(total=len(cases) * (warm_up + repeat), unit="run", desc="Timing") as bar:
        start = time.perf_counter()
        for _ in range(warm_up):
            _round(cases, device, seed, bar)
        if seconds is not None:
            took = time.perf_counter() - start
            repeat = min(repeat, max(MIN_ROUNDS, int((seconds - took) / took * warm_up)))
            bar.total = len(cases) * (warm_up + repeat)
        return [_round(cases, device, seed, bar) for _ in range(repeat)]


def _round(cases: dict, device: torch.device, seed: int, bar: tqdm) -> dict[Hashable, float]:
    seconds = {}
    for name, case in cases.items():
        seconds[name] = run_once(case, device, seed)
        bar.update()
    return seconds


def run_once(case: Case, device: torch.device, seed: int) -> float:
    """Time one run in seconds, with the device idle before and after."""
    torch.manual_seed(seed)
    _wait(device)
    start = time.perf_counter()
    case()
    _wait(device)
    return time.perf_counter() - start


@contextmanager
def as_in_training(device: torch.device) -> Iterator[None]:
    """Enter the context of an AIDTrainer step at an iteration without logging."""
    with EventStorage(ORDINARY), torch.jit.optimized_execution(device.type != "cpu"):
        yield


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
