"""Seconds of several cases, taken in turn."""

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
# Rounds that do not count; a GPU needs more to find its algorithms and its clock.
WARM_UP = {"cpu": 1, "cuda": 3}
# An iteration of which nothing is logged, and in which no gradient is measured.
ORDINARY = PERIOD + 1


def time_rounds(
    cases: dict[Hashable, Case],
    device: torch.device,
    *,
    seed: int,
    repeat: int,
    seconds: float | None = None,
) -> list[dict[Hashable, float]]:
    """Run all cases in turn, round after round, after warming up; within :func:`as_in_training`.

    In turn, since a machine that is slow for a while is then slow for all cases: what is compared
    should be taken from the same round.

    Args:
        cases: {name: case}.
        device: that they run on, for which every time waits.
        seed: of the random numbers of every run, so that all rounds do the same work.
        repeat: number of rounds, at most.
        seconds: as many rounds as fit beside the warm-up, by its time, and at least 3; None for
            all.

    Returns:
        For every round the seconds of each case.
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
    found = {}
    for name, case in cases.items():
        found[name] = run_once(case, device, seed)
        bar.update()
    return found


def run_once(case: Case, device: torch.device, seed: int) -> float:
    """Seconds of one run, from an idle device to an idle device."""
    torch.manual_seed(seed)
    _wait(device)
    start = time.perf_counter()
    case()
    _wait(device)
    return time.perf_counter() - start


@contextmanager
def as_in_training(device: torch.device) -> Iterator[None]:
    """Enter the context of a step of AIDTrainer, at an ordinary iteration."""
    with EventStorage(ORDINARY), torch.jit.optimized_execution(device.type != "cpu"):
        yield


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
