"""Cost of a detector: parameters, FLOPs and inference time."""

import time
from dataclasses import dataclass
from statistics import median

import torch
from detectron2.utils.analysis import FlopCountAnalysis
from torch import nn

__all__ = ["Cost", "count_gflops", "measure_cost"]

WARM_UP = 3


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


def count_gflops(model: nn.Module, sample: dict) -> float:
    """Multiply-adds of a detector for one image, in units of 1e9, as counted by fvcore.

    Args:
        model: detector in eval mode.
        sample: its input.
    """
    flops = FlopCountAnalysis(model, [sample])
    flops.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return flops.total() / 1e9


def measure_cost(model: nn.Module, samples: list[dict]) -> Cost:
    """Measure the cost of a detector.

    Args:
        model: detector in eval mode.
        samples: inputs for the timing; FLOPs are counted on the first one.
    """
    parameters = sum(p.numel() for p in model.parameters())
    gflops = count_gflops(model, samples[0])
    seconds = []
    with torch.no_grad():
        for sample in [*samples[:WARM_UP], *samples]:
            start = time.perf_counter()
            model([sample])
            if model.device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    return Cost(parameters / 1e6, gflops, median(seconds[WARM_UP:]))
