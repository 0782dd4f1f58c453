"""Latency and size of a detector and its exported forms."""

import io
import math
import os
from dataclasses import dataclass

import torch
from tabulate import tabulate
from torch import nn

from ..text import markdown_cell
from .comparison import Difference

__all__ = ["Row", "size_of_weights", "table"]


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
