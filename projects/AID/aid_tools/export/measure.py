"""What a detector costs in each form: time and size, side by side."""

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

from .comparison import Difference

__all__ = ["Row", "latencies", "num_parameters", "size_of_weights", "table"]

# Runs that do not count; TorchScript optimises what it sees in the first ones.
WARM_UP = 5


@dataclass(frozen=True)
class Row:
    """One form of a detector.

    Attributes:
        name: for people.
        megabytes: of the file, in 1e6 bytes; of a detector that is not exported, of a file with its
            weights alone.
        parameters: of the detector, in millions.
        difference: from the detector that was exported; None for a detector itself.
        milliseconds: median for one image; NaN until it is measured.
    """

    name: str
    megabytes: float
    parameters: float
    difference: Difference | None = None
    milliseconds: float = math.nan


@torch.no_grad()
def latencies(runs: list[Callable[[], object]], repeat: int) -> list[float]:
    """Median milliseconds of each run, after warm-up.

    They are taken in turn, since a machine that is slow for a while is then slow for all of them.
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
    """In millions."""
    return sum(p.numel() for p in detector.parameters()) / 1e6


def size_of_weights(detector: nn.Module) -> float:
    """Megabytes of a file with the detector's weights alone."""
    file = io.BytesIO()
    torch.save(detector.state_dict(), file)
    return file.seek(0, os.SEEK_END) / 1e6


def table(rows: list[Row]) -> str:
    """As Markdown."""
    cells = [
        [
            row.name,
            f"{row.milliseconds:.1f}",
            f"{row.megabytes:.1f}",
            f"{row.parameters:.2f}",
            _said(row.difference),
        ]
        for row in rows
    ]
    headers = ["", "ms an image", "MB", "M parameters", "largest difference"]
    right = ("left", "right", "right", "right", "left")
    return tabulate(cells, headers, tablefmt="pipe", colalign=right, disable_numparse=True)


def _said(difference: Difference | None) -> str:
    if difference is None:
        return ""
    units = {"boxes": "boxes {:.1g} px", "scores": "scores {:.1g}", "masks": "masks {:.1g}"}
    return ", ".join(units[k].format(v) for k, v in difference.largest.items())
