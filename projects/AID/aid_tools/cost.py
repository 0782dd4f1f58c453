"""Cost of detectors: parameters, FLOPs and inference time."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from statistics import median

import torch
from detectron2.utils.analysis import FlopCountAnalysis
from torch import nn
from tqdm import tqdm

__all__ = ["Cost", "count_gflops", "latencies", "measure_costs", "num_parameters"]

# Untimed runs; TorchScript optimizes during the first ones.
WARM_UP = 5


@dataclass(frozen=True)
class Cost:
    """Cost of a detector.

    Attributes:
        parameters: number of parameters, in millions.
        gflops: multiply-adds for one image, in units of 1e9, as counted by fvcore.
        seconds: median inference time of a batch of one image.
    """

    parameters: float
    gflops: float
    seconds: float


def num_parameters(detector: nn.Module) -> float:
    """Number of parameters, in millions."""
    return sum(x.numel() for x in detector.parameters()) / 1e6


def count_gflops(model: nn.Module, sample: dict) -> float:
    """Multiply-adds of a detector for one image, in units of 1e9, as counted by fvcore.

    Args:
        model: detector in eval mode.
        sample: its input.
    """
    flops = FlopCountAnalysis(model, [sample])
    flops.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return flops.total() / 1e9


def measure_costs(detectors: list[nn.Module], samples: list[list[dict]]) -> list[Cost]:
    """Measure the costs of detectors, with times in alternation.

    Args:
        detectors: in eval mode.
        samples: of each detector, its inputs for the timing, equally many; FLOPs are counted on the
            first one.
    """
    runs = [partial(_detect, x, cycle(y)) for x, y in zip(detectors, samples, strict=True)]
    times = latencies(runs, len(samples[0]))
    return [
        Cost(num_parameters(x), count_gflops(x, y[0]), ms / 1000)
        for x, y, ms in zip(detectors, samples, times, strict=True)
    ]


def _detect(detector: nn.Module, samples: Iterator[dict]) -> None:
    detector([next(samples)])
    if detector.device.type == "cuda":
        torch.cuda.synchronize()


@torch.no_grad()
def latencies(runs: list[Callable[[], object]], repeat: int) -> list[float]:
    """Median time of each function in milliseconds, after warm-up.

    Args:
        runs: functions to time. They run in turn, so that a temporary slowdown of the machine
            affects all of them.
        repeat: number of timed runs of each function.
    """
    seconds = [[] for _ in runs]
    for number in tqdm(range(WARM_UP + repeat), desc="Timing", unit="round"):
        for run, times in zip(runs, seconds, strict=True):
            start = time.perf_counter()
            run()
            if number >= WARM_UP:
                times.append(time.perf_counter() - start)
    return [1000 * median(times) for times in seconds]
