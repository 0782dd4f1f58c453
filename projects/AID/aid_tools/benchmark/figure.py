"""Figure of a sweep."""

import os

import matplotlib.pyplot as plt
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure

from aid.utils.errors import AIDError

from .page import TITLES
from .sweep import Sweep

__all__ = ["check_format", "draw_sweeps"]

plt.switch_backend("Agg")  # no display is needed


def check_format(path: str) -> None:
    """Check the file format of a figure.

    Raises:
        AIDError: matplotlib does not support the file extension.
    """
    supported = FigureCanvasBase.get_supported_filetypes()
    if os.path.splitext(path)[1].removeprefix(".") not in supported:
        raise AIDError(
            f"--figure {path}: choose one of the file extensions {', '.join(sorted(supported))}"
        )


def draw_sweeps(sweeps: list[Sweep]) -> Figure:
    """Draw the time of every case over the varied quantity, one panel per sweep."""
    figure, axes = plt.subplots(1, len(sweeps), figsize=(15, 4.5), layout="constrained")
    for axis, sweep in zip(axes, sweeps, strict=True):
        order = sorted(range(len(sweep.values)), key=sweep.values.__getitem__)
        for name, seconds in sweep.seconds.items():
            axis.plot(
                [sweep.values[i] for i in order],
                [seconds[i] for i in order],
                marker="o",
                label=TITLES.get(name, name),
            )
        # Proportional growth has slope 1; "symlog", since the number of instances may be 0.
        axis.set_xscale("symlog", linthresh=1)
        axis.set_xticks(sweep.values, [f"{x:g}" for x in sweep.values], minor=False)
        axis.set_xticks([], minor=True)
        axis.set(xlabel=sweep.title, yscale="log", ylabel="seconds")
        axis.grid(alpha=0.3)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return figure
