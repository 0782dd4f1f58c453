"""Figures of the report."""

import os
from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
from detectron2.structures import Instances
from matplotlib.figure import Figure

from aid.utils.files import whole_file
from aid.utils.text import figure_text

from ..visualization import draw_boxes, draw_weights, enlarge
from .instances import ImageStats
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
CLASS_COLORS = ((255, 214, 10), (255, 90, 95), (64, 224, 255), (170, 120, 255), (120, 230, 90))

# Limit of height over width of a row of images.
MAX_RATIO = 4


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
        for run, label, color in zip(runs, labels, _cycle(COLORS, len(runs)), strict=True):
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
            axis.text(0.5, 0.5, "not in any run", ha="center", transform=axis.transAxes)
    axes[1, 0].set_ylim(0, 1)
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
    for by_class, label, color in zip(curves, labels, _cycle(COLORS, len(curves)), strict=True):
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
    detections: list[list[Instances]],
    stats: list[ImageStats] | None,
    labels: list[str],
    classes: list[str],
    threshold: float,
) -> Figure:
    """Draw the detections of each run and the weights of the ground truth, one row per image.

    Args:
        images: (H, W, 3), RGB, uint8, each.
        detections: for each run, the predicted instances of each image.
        stats: for each image, teacher's losses and weights; None if no run has weights.
        labels: names of the runs.
        classes: class names, by category id.
        threshold: minimum score of the detections to draw.
    """
    columns = len(detections) + (stats is not None)
    # A high image is drawn smaller than its column.
    ratio = min(images[0].shape[0] / images[0].shape[1], MAX_RATIO)
    size = (6.2 * columns, (6.2 * ratio + 0.08) * len(images) + 0.9)
    figure, axes = plt.subplots(
        len(images), columns, figsize=size, squeeze=False, layout="constrained"
    )
    for row, image in enumerate(images):
        for column, run in enumerate(detections):
            axes[row, column].imshow(_draw_detections(image, run[row], threshold))
        if stats is not None:
            x = stats[row]
            axes[row, -1].imshow(draw_weights(x.image, x.boxes, x.weights, x.losses))
    titles = [*labels, "ground truth: weight w, teacher's loss D"][:columns]
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(figure_text(title), fontsize=13)
    for axis in axes.flat:
        axis.set_axis_off()
    handles = [
        plt.Line2D([], [], color=np.array(color) / 255, lw=4, label=figure_text(name))
        for name, color in zip(classes, _cycle(CLASS_COLORS, len(classes)), strict=True)
    ]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=len(classes),
        title=f"detections with a score of at least {threshold}",
    )
    return figure


def _draw_detections(image: np.ndarray, instances: Instances, threshold: float) -> np.ndarray:
    kept = instances[instances.scores >= threshold]
    image, factor = enlarge(image)
    colors = [CLASS_COLORS[i % len(CLASS_COLORS)] for i in kept.pred_classes.tolist()]
    labels = [f"{score:.2f}" for score in kept.scores.tolist()]
    return draw_boxes(image, kept.pred_boxes.tensor.numpy() * factor, colors, labels)


def draw_groups(groups: dict[str, tuple[list[float], list[float]]]) -> Figure:
    """Draw box plots of the teacher's loss and of the instance weight, by group.

    Args:
        groups: {name: (losses, weights)}; empty groups are left out.
    """
    groups = {name: values for name, values in groups.items() if values[0]}
    ticks = [f"{figure_text(name)}\n({len(losses)})" for name, (losses, _) in groups.items()]
    figure, axes = plt.subplots(1, 2, figsize=(13, 4.5), layout="constrained")
    for axis, column, title in ((axes[0], 0, "teacher's loss D"), (axes[1], 1, "weight w")):
        boxes = axis.boxplot(
            [values[column] for values in groups.values()],
            tick_labels=ticks,
            showfliers=False,
            patch_artist=True,
            medianprops={"color": "black"},
        )
        for patch, color in zip(boxes["boxes"], _cycle(COLORS, len(groups)), strict=True):
            patch.set(facecolor=color, alpha=0.75)
        axis.set_title(f"{title} of training instances (boxes: quartiles)")
        axis.set_ylim(bottom=0)
        axis.grid(axis="y", alpha=0.3)
    axes[1].set_ylim(0, 1)
    return figure


def _cycle(colors: tuple, count: int) -> list:
    return [colors[i % len(colors)] for i in range(count)]
