"""Figures of the report."""

import os
from collections.abc import Callable
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
from detectron2.structures import Instances
from detectron2.utils.colormap import colormap
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from aid.modeling.diagnostics import LOG_PERIOD
from aid.utils.drawing import COLORMAP
from aid.utils.files import whole_file
from aid.utils.text import one_line

from ..text import figure_text
from ..visualization.canvas import Canvas
from ..visualization.labels import Label, draw_labels, draw_regions
from .instances import DOUBTS, ImageStats
from .precision_recall import Curve
from .runs import Run

__all__ = [
    "MAX_CLASSES",
    "draw_curves",
    "draw_groups",
    "draw_precision_recall",
    "draw_sheet",
    "save",
]

plt.switch_backend("Agg")  # no display is needed

# Okabe and Ito's palette, which is safe for color-blind readers.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000")
# Maximum number of classes with precision-recall curves.
MAX_CLASSES = 16
CLASS_COLORS = colormap(rgb=True, maximum=1)

# In inches of 100 pixels: the width of the report's page, and the space between pictures.
SHEET_WIDTH, SHEET_GAP, TITLE = 12.2, 0.15, 0.28
LEGEND_COLUMNS, LABEL_SIZE = 6, 9
# Limit of height over width of a picture.
MAX_RATIO = 1


def save(figure: Figure, path: str) -> None:
    """Write a figure to a file, in the format of its extension, and close it."""
    kind = os.path.splitext(path)[1].removeprefix(".")
    with whole_file(path) as f:
        figure.savefig(f, format=kind, dpi=100, bbox_inches="tight")
    plt.close(figure)


def draw_curves(runs: list[Run], labels: list[str]) -> Figure:
    """Draw task loss, distillation loss, mean instance weight and AP over the iterations."""
    figure, axes = plt.subplots(2, 2, figsize=(13, 8), layout="constrained")
    panels = (
        ("task loss", _sums(lambda key: key.startswith("loss_") and "distill" not in key)),
        ("distillation loss", _sums(lambda key: key.startswith("loss_distill"))),
        ("mean weight of the instances", _sums(lambda key: key == "aid/weight_mean")),
        ("AP on the test set, in percent", lambda run: run.history("bbox", "AP")),
    )
    for axis, (title, points_of) in zip(axes.flat, panels, strict=True):
        for run, label, color in zip(runs, labels, cycle(COLORS), strict=False):
            if points := points_of(run):
                marker = "o" if len(points) < 10 else ""
                axis.plot(
                    *zip(*points, strict=True), label=figure_text(label), color=color, marker=marker
                )
        axis.set(title=title, xlabel="iteration")
        axis.set_ylim(bottom=0)
        axis.set_xlim(left=0)
        axis.grid(alpha=0.3)
        if axis.lines:
            # Named, since a label that starts with "_" is left out otherwise.
            axis.legend(handles=axis.lines, frameon=False, fontsize=9)
        else:
            axis.text(0.5, 0.5, "no run logged it", ha="center", transform=axis.transAxes)
    weights = axes[1, 0]
    weights.set_ylim(0, 1)
    if weights.texts and any(x.is_distilled and x.cfg.SOLVER.MAX_ITER < LOG_PERIOD for x in runs):
        weights.texts[0].set_text(
            f"no run logged it:\nruns of fewer than {LOG_PERIOD} iterations do not"
        )
    return figure


def _sums(wanted: Callable[[str], bool]) -> Callable[[Run], list[tuple[int, float]]]:
    """Make a function (run) -> [(iteration, sum of the metrics whose names are wanted)]."""
    return lambda run: [
        (line["iteration"], sum(value for key, value in line.items() if wanted(key)))
        for line in run.metrics
        if any(wanted(key) for key in line)
    ]


def draw_precision_recall(curves: list[dict[str, dict[str, Curve]]], labels: list[str]) -> Figure:
    """Draw precision over recall: one row per class, one column per criterion.

    Args:
        curves: for each run {class: {criterion: curve}}; empty for a run without curves.
        labels: names of the runs.
    """
    classes = list(dict.fromkeys(name for by_class in curves for name in by_class))[:MAX_CLASSES]
    criteria = list(dict.fromkeys(c for by_class in curves for x in by_class.values() for c in x))
    size = (4 * len(criteria) + 1, 2.7 * len(classes) + 1)
    figure, axes = plt.subplots(
        len(classes), len(criteria), figsize=size, squeeze=False, layout="constrained"
    )
    handles = []
    for by_class, label, color in zip(curves, labels, cycle(COLORS), strict=False):
        if by_class:
            label = figure_text(label.replace("\n", " "))
            handles.append(plt.Line2D([], [], color=color, lw=3, label=label))
        for row, name in enumerate(classes):
            for column, curve in enumerate(by_class.get(name, {}).values()):
                axes[row, column].plot(
                    curve.recall, curve.precision, color=color, label=f"{curve.ap:.1f}"
                )
    for row, name in enumerate(classes):
        for column, criterion in enumerate(criteria):
            axis = axes[row, column]
            axis.set(title=figure_text(f"{name}, {criterion}"), xlabel="recall", ylabel="precision")
            axis.set(xlim=(0, 1), ylim=(0, 1.02))
            axis.grid(alpha=0.3)
            if axis.lines:
                axis.legend(title="AP", frameon=False, fontsize=8, title_fontsize=8)
    figure.legend(handles=handles, loc="outside upper center", ncols=2)
    return figure


def draw_sheet(
    images: list[np.ndarray],
    regions: list[np.ndarray],
    detections: list[list[Instances]],
    stats: list[ImageStats] | None,
    labels: list[str],
    classes: list[str],
    threshold: float,
) -> Figure:
    """Draw the detections of each run and the weights of the ground truth, image by image.

    Two pictures are side by side, so that labels are legible on a page of SHEET_WIDTH.

    Args:
        images: (H, W, 3), RGB, uint8, each.
        regions: for each image, boxes (D, 4) that the metric ignores, XYXY in pixels.
        detections: for each run, the predicted instances of each image.
        stats: for each image, teacher's losses and weights; None if no run has weights.
        labels: names of the runs.
        classes: class names, by category id.
        threshold: minimum score of the detections to draw.
    """
    kept = [[x[x.scores >= threshold] for x in run] for run in detections]
    drawn = sorted({i for run in kept for x in run for i in x.pred_classes.tolist()})
    titles = [label.replace("\n", " ") for label in labels]
    if stats is not None:
        titles.append("ground truth: class, weight w, teacher's loss D")
    columns = min(2, len(titles))
    width = (SHEET_WIDTH - SHEET_GAP * (columns - 1)) / columns
    # A high image is drawn smaller than its column.
    heights = [width * min(x.shape[0] / x.shape[1], MAX_RATIO) for x in images]
    rows, legend_rows = -(-len(titles) // columns), -(-len(drawn) // LEGEND_COLUMNS)
    body = sum(rows * (height + TITLE) + SHEET_GAP for height in heights)
    canvas = Canvas(SHEET_WIDTH, body + max(0.7, 0.4 + 0.22 * legend_rows))
    top = 0.0
    for k, (image, height) in enumerate(zip(images, heights, strict=True)):
        for place, title in enumerate(titles):
            x, y = place % columns * (width + SHEET_GAP), top + place // columns * (height + TITLE)
            canvas.text(x, y + TITLE - 0.05, title, 9.5, va="bottom")
            if place < len(kept):
                pixels, boxes = image, _detection_labels(kept[place][k])
            else:
                pixels, boxes = stats[k].image, _weight_labels(stats[k], classes)
            shown = min(width, height * pixels.shape[1] / pixels.shape[0])
            axes = canvas.image(pixels, x, y + TITLE, shown, height)
            draw_regions(axes, regions[k] * (pixels.shape[1] / image.shape[1]))
            draw_labels(axes, boxes, LABEL_SIZE)
        top += rows * (height + TITLE) + SHEET_GAP
    if stats is not None:
        bar = min(3.0, width)
        canvas.colorbar("viridis", Normalize(0, 1), SHEET_WIDTH - bar - 0.2, top, bar, "weight w")
    handles = [
        plt.Line2D([], [], color=_class_color(i), lw=4, label=figure_text(classes[i]))
        for i in drawn
    ]
    canvas.figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0, 1 - top / canvas.height),
        ncols=min(LEGEND_COLUMNS, max(1, len(drawn))),
        frameon=False,
        title=f"detections with a score of at least {threshold}",
        alignment="left",
    )
    return canvas.figure


def _detection_labels(instances: Instances) -> list[Label]:
    boxes = instances.pred_boxes.tensor.tolist()
    found = zip(boxes, instances.pred_classes.tolist(), instances.scores.tolist(), strict=True)
    return [Label(tuple(box), f"{score:.2f}", _class_color(i)) for box, i, score in found]


def _weight_labels(stats: ImageStats, classes: list[str]) -> list[Label]:
    names = [one_line(classes[label["category_id"]]) for label in stats.annotations]
    numbers = zip(stats.weights.tolist(), stats.losses.tolist(), strict=True)
    return [
        Label(tuple(box), f"{name}\nw {weight:.2f} D {loss:.1f}", COLORMAP(weight)[:3])
        for box, name, (weight, loss) in zip(stats.boxes.tolist(), names, numbers, strict=True)
    ]


def draw_groups(groups: dict[str, tuple[list[float], list[float]]]) -> Figure:
    """Draw box plots of the teacher's loss and of the instance weight, by group.

    Args:
        groups: {name: (losses, weights)}, the classes by category id, then groups of DOUBTS; empty
            groups are left out.
    """
    colors = {x: "0.8" if x in DOUBTS else _class_color(i) for i, x in enumerate(groups)}
    groups = {name: values for name, values in groups.items() if values[0]}
    ticks = [f"{figure_text(name)} ({len(losses)})" for name, (losses, _) in groups.items()]
    figure, axes = plt.subplots(
        1, 2, figsize=(SHEET_WIDTH, 1 + 0.4 * len(groups)), sharey=True, layout="constrained"
    )
    for axis, column, title in ((axes[0], 0, "teacher's loss D"), (axes[1], 1, "weight w")):
        boxes = axis.boxplot(
            [values[column] for values in groups.values()],
            orientation="horizontal",
            tick_labels=ticks if column == 0 else None,
            manage_ticks=column == 0,
            widths=0.6,
            showfliers=False,
            patch_artist=True,
            medianprops={"color": "black"},
        )
        for patch, name in zip(boxes["boxes"], groups, strict=True):
            patch.set(facecolor=colors[name])
        axis.set_title(title)
        axis.set_xlim(left=0)
        axis.grid(axis="x", alpha=0.3)
    axes[0].invert_yaxis()
    axes[1].set_xlim(0, 1)
    return figure


def _class_color(i: int) -> tuple[float, ...]:
    """RGB from 0 to 1 of a class, in all pictures; tools/predict.py has the same."""
    return tuple(CLASS_COLORS[i % len(CLASS_COLORS)])
