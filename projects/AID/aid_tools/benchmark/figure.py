"""The figure of a sweep."""

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
    """
    Raises:
        AIDError: the path's ending is of no format that matplotlib writes.
    """
    known = FigureCanvasBase.get_supported_filetypes()
    if os.path.splitext(path)[1].removeprefix(".") not in known:
        raise AIDError(f"--figure {path}: its ending is none of {', '.join(sorted(known))}")


def draw_sweeps(sweeps: list[Sweep]) -> Figure:
    """Seconds of every case against what grows, a panel for each quantity."""
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
        # What grows in proportion has slope 1; there is no logarithm of no instance.
        axis.set_xscale("symlog", linthresh=1)
        axis.set_xticks(sweep.values, [f"{x:g}" for x in sweep.values], minor=False)
        axis.set_xticks([], minor=True)
        axis.set(xlabel=sweep.title, yscale="log", ylabel="seconds")
        axis.grid(alpha=0.3)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return figure
