"""What a detector costs: parameters, FLOPs, time."""

import time
from dataclasses import dataclass
from statistics import median

import torch
from detectron2.utils.analysis import FlopCountAnalysis
from torch import nn

__all__ = ["Cost", "measure_cost"]

WARM_UP = 3


@dataclass(frozen=True)
class Cost:
    """
    Attributes:
        parameters: of the detector, in millions.
        gflops: multiply-adds of one image, in units of 1e9, as fvcore counts them.
        seconds: median time of one image in a batch of its own.
    """

    parameters: float
    gflops: float
    seconds: float


def measure_cost(model: nn.Module, samples: list[dict]) -> Cost:
    """Measure a detector in eval mode on its own inputs; FLOPs are those of the first."""
    parameters = sum(p.numel() for p in model.parameters())
    flops = FlopCountAnalysis(model, samples[:1])
    flops.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    total = flops.total()
    seconds = []
    with torch.no_grad():
        for sample in [*samples[:WARM_UP], *samples]:
            start = time.perf_counter()
            model([sample])  # the boxes' last steps wait for the device
            if model.device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    return Cost(parameters / 1e6, total / 1e9, median(seconds[WARM_UP:]))
