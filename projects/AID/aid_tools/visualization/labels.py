"""Box labels, placed so that they overlap as little as possible."""

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from ..text import figure_text

__all__ = ["Label", "casing", "draw_labels", "draw_regions", "place"]

Rectangle = tuple[float, float, float, float]  # x1, y1, x2, y2


@dataclass(frozen=True)
class Label:
    """Text label of a box.

    Attributes:
        box: XYXY, in pixels of the axes' image.
        text: text, which may have several lines.
        color: color of the box.
    """

    box: Rectangle
    text: str
    color: tuple[float, ...]


def casing(color: tuple[float, ...]) -> str:
    """Outline color that makes a line of ``color`` visible on any image."""
    return "white" if 0.3 * color[0] + 0.6 * color[1] + 0.1 * color[2] < 0.5 else "black"


def draw_regions(axes: Axes, boxes: np.ndarray) -> None:
    """Draw boxes (D, 4), XYXY in pixels of the axes' image, dashed and without text."""
    limits = {"xlim": axes.get_xlim(), "ylim": axes.get_ylim()}
    for x1, y1, x2, y2 in boxes.tolist():
        axes.plot([x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1], "--", color="silver", zorder=2)
    axes.set(**limits)


def draw_labels(axes: Axes, labels: list[Label], size: float = 11) -> None:
    """Draw boxes and their labels, connected by a line where they do not touch.

    Args:
        axes: axes that show an image.
        labels: labels of the boxes in it.
        size: font size in points, which lines are in proportion to.
    """
    thick, thin = 4.2 * size / 11, 2.6 * size / 11
    renderer = axes.figure.canvas.get_renderer()
    to_pixels = axes.transData.inverted()
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    texts, sizes = [], []
    for label in labels:
        x1, y1, x2, y2 = label.box
        corners = [x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1]
        axes.plot(*corners, color=casing(label.color), linewidth=thick, zorder=2)
        axes.plot(*corners, color=label.color, linewidth=thin, zorder=2)
        text = axes.text(
            x1,
            y1,
            figure_text(label.text),
            fontsize=size,
            va="top",
            ha="left",
            linespacing=1.05,
            color="white",
            zorder=4,
            bbox={
                "facecolor": (0.07, 0.07, 0.07),
                "edgecolor": label.color,
                "linewidth": 1.5,
                "pad": 2.0,
            },
        )
        extent = text.get_window_extent(renderer)
        (ax, ay), (bx, by) = to_pixels.transform([(extent.x0, extent.y1), (extent.x1, extent.y0)])
        texts.append(text)
        sizes.append((bx - ax, by - ay))
    axes.set(xlim=(left, right), ylim=(bottom, top))
    pad = 4.5 * (right - left) / axes.get_window_extent(renderer).width
    sizes = [(width + 2 * pad, height + 2 * pad) for width, height in sizes]
    places = place([label.box for label in labels], sizes, (right, bottom))
    for label, text, (x1, y1, x2, y2) in zip(labels, texts, places, strict=True):
        text.set_position((x1 + pad, y1 + pad))
        bx1, by1, bx2, by2 = label.box
        nearest = min(max((x1 + x2) / 2, bx1), bx2), min(max((y1 + y2) / 2, by1), by2)
        start = min(max(nearest[0], x1), x2), min(max(nearest[1], y1), y2)
        axes.plot(*zip(start, nearest, strict=True), color=label.color, linewidth=1.2, zorder=3)


def place(
    boxes: list[Rectangle], sizes: list[tuple[float, float]], canvas: tuple[float, float]
) -> list[Rectangle]:
    """Choose a position inside the canvas for the label of each box.

    Labels are placed greedily. The cost penalizes, in this order, overlap with labels placed
    before, overlap with boxes, and the distance to the label's own box.

    Args:
        boxes: XYXY.
        sizes: width and height of the labels.
        canvas: width and height.

    Returns:
        XYXY, in the order of the boxes.
    """
    placed: dict[int, Rectangle] = {}
    for i in sorted(range(len(boxes)), key=lambda i: (boxes[i][1], boxes[i][0])):
        others = [box for k, box in enumerate(boxes) if k != i]

        def cost(spot: Rectangle, i: int = i, others: list[Rectangle] = others) -> float:
            area = (spot[2] - spot[0]) * (spot[3] - spot[1])
            labels = sum(_overlap(spot, other) for other in placed.values())
            covered = sum(_overlap(spot, box) for box in others)
            inside = _overlap(spot, boxes[i])
            distance = _distance(spot, boxes[i]) / (sizes[i][1] or 1)
            return (100 * labels + 6 * covered + 4 * inside) / area + distance

        placed[i] = min(_spots(boxes[i], sizes[i], canvas), key=cost)
    return [placed[i] for i in range(len(boxes))]


def _spots(
    box: Rectangle, size: tuple[float, float], canvas: tuple[float, float]
) -> list[Rectangle]:
    """Candidate positions around a box: above, below and beside it, at increasing distance."""
    (x1, y1, x2, y2), (width, height) = box, size
    spots = []
    for step in range(9):
        away = step * height / 2
        for x in (x1, x2 - width, (x1 + x2 - width) / 2, x1 - width - away, x2 + away):
            for y in (y1 - height - away, y2 + away):
                spots.append((x, y))
        for y in (y1, y2 - height, (y1 + y2 - height) / 2):
            spots += [(x2 + away, y), (x1 - width - away, y)]
    inside = []
    for x, y in spots:
        x = min(max(x, 0), max(0, canvas[0] - width))
        y = min(max(y, 0), max(0, canvas[1] - height))
        inside.append((x, y, x + width, y + height))
    return inside


def _overlap(a: Rectangle, b: Rectangle) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return width * height if width > 0 and height > 0 else 0.0


def _distance(a: Rectangle, b: Rectangle) -> float:
    dx = max(a[0] - b[2], b[0] - a[2], 0.0)
    dy = max(a[1] - b[3], b[1] - a[3], 0.0)
    return (dx**2 + dy**2) ** 0.5
