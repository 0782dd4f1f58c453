"""Latency and size of a detector and its exported forms."""

import io
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from tabulate import tabulate
from torch import nn
from tqdm import tqdm

from ..text import markdown_cell
from .comparison import Difference

__all__ = ["Row", "latencies", "num_parameters", "size_of_weights", "table"]

# Untimed runs; TorchScript optimizes during the first ones.
WARM_UP = 5


@dataclass(frozen=True)
class Row:
    """Row of the table: one form of a detector.

    Attributes:
        name: display name.
        megabytes: size of the file, in 1e6 bytes; for a detector that is not exported, size of a
            file with its weights only.
        parameters: number of parameters, in millions.
        difference: difference to the original detector; None for an original detector.
        milliseconds: median latency for one image; NaN before the measurement.
        ap: average precision by task; None if it was not measured.
        gflops: multiply-adds for one image, in units of 1e9; None if they were not counted.
        pixels: height x width of the image of which GFLOPs and latency are.
    """

    name: str
    megabytes: float
    parameters: float
    difference: Difference | None = None
    milliseconds: float = math.nan
    ap: dict[str, float] | None = None
    gflops: float | None = None
    pixels: str = ""


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


def num_parameters(detector: nn.Module) -> float:
    """Number of parameters, in millions."""
    return sum(p.numel() for p in detector.parameters()) / 1e6


def size_of_weights(detector: nn.Module) -> float:
    """Size of a file with the detector's weights only, in 1e6 bytes."""
    file = io.BytesIO()
    torch.save(detector.state_dict(), file)
    return file.seek(0, os.SEEK_END) / 1e6


def table(rows: list[Row]) -> str:
    """Format the rows as a Markdown table; columns without values, or of one size, are omitted."""
    sizes = [row.pixels for row in rows]
    columns = {
        "": [markdown_cell(row.name) for row in rows],
        "pixels": sizes if len(set(sizes)) > 1 else [],
        "AP": [_format_ap(row.ap) for row in rows],
        "M parameters": [f"{row.parameters:.2f}" for row in rows],
        "GFLOPs": ["" if row.gflops is None else f"{row.gflops:.2f}" for row in rows],
        "MB": [f"{row.megabytes:.1f}" for row in rows],
        "ms an image": [f"{row.milliseconds:.1f}" for row in rows],
        "largest difference": [_format(row.difference) for row in rows],
    }
    columns = {name: cells for name, cells in columns.items() if any(cells)}
    texts = ("", "AP", "largest difference")
    return tabulate(
        columns,
        headers="keys",
        tablefmt="pipe",
        colalign=["left" if name in texts else "right" for name in columns],
        disable_numparse=True,
    )


def _format_ap(ap: dict[str, float] | None) -> str:
    return ", ".join(f"{task} {value:.2f}" for task, value in (ap or {}).items())


def _format(difference: Difference | None) -> str:
    if difference is None:
        return ""
    units = {"boxes": "boxes {:.1g} px", "scores": "scores {:.1g}", "masks": "masks {:.1g}"}
    return ", ".join(units[k].format(v) for k, v in difference.largest.items())
