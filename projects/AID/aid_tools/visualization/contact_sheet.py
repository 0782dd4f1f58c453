"""Contact sheet of the instances with the lowest and highest imitation weights."""

import math
import os
import textwrap
from dataclasses import dataclass

import numpy as np
from matplotlib.patches import Rectangle

from aid.utils.drawing import COLORMAP
from aid.utils.text import one_line

from .canvas import MARGIN, Canvas, enlarged
from .collect import Seen
from .labels import casing
from .words import largest_part, name_of_part

__all__ = ["Entry", "draw_contact_sheet", "entries_of", "extremes"]

COLUMNS = 8
CROP, GAP, TEXT = 2.0, 0.2, 1.0
# Side of a crop as a multiple of the longer side of its box, and its minimum in pixels.
CONTEXT, MIN_SIDE = 1.6, 24


@dataclass(frozen=True)
class Entry:
    """Instance with its imitation weight and teacher loss.

    Attributes:
        file_name: file name of the image.
        box: XYXY, in pixels of the image at the network's input.
        category: name of the class.
        weight: imitation weight.
        loss: the teacher's per-instance loss D.
        part: name of the largest component of D.
        value: value of this component.
    """

    file_name: str
    box: tuple[float, float, float, float]
    category: str
    weight: float
    loss: float
    part: str
    value: float

    @property
    def share(self) -> float:
        """Share of D due to the largest component."""
        return self.value / self.loss if 0 < self.loss < math.inf else 1.0


def entries_of(seen: Seen, sample: dict, names: list[str]) -> list[Entry]:
    """Build the entries of all instances of an image.

    Args:
        seen: result of one teacher on the image.
        sample: input of the model, with ``instances``.
        names: class names, by class id.
    """
    instances = sample["instances"]
    entries = []
    for i, (box, category) in enumerate(
        zip(instances.gt_boxes.tensor.tolist(), instances.gt_classes.tolist(), strict=True)
    ):
        entries.append(
            Entry(
                sample["file_name"],
                tuple(box),
                names[category],
                seen.weights[i].item(),
                seen.losses[i].item(),
                *largest_part(seen.parts, i),
            )
        )
    return entries


def extremes(entries: list[Entry], count: int) -> tuple[list[Entry], list[Entry]]:
    """Select the entries with the lowest and with the highest weights.

    Entries with equal weights are ordered by decreasing loss.

    Returns:
        Up to ``count`` entries in ascending order of weight, and up to ``count`` of the others in
        descending order.
    """
    order = sorted(entries, key=lambda x: (x.weight, -x.loss))
    least = order[:count]
    return least, order[len(least) :][::-1][:count]


def draw_contact_sheet(
    sections: list[tuple[str, list[Entry]]],
    images: dict[str, np.ndarray],
    title: str,
    columns: int = COLUMNS,
) -> Canvas:
    """Draw a page of crops.

    Args:
        sections: heading and entries of each section.
        images: {file name: (H, W, 3), RGB, uint8} of the entries.
        title: title of the page.
        columns: largest number of crops in a row, at least 5.
    """
    columns = min(columns, max(len(entries) for _, entries in sections))
    columns = max(columns, 5)
    rows = [-(-len(entries) // columns) for _, entries in sections]
    row_height = CROP + TEXT + GAP
    height = 0.75 + sum(0.4 + n * row_height for n in rows) + 0.4
    canvas = Canvas(2 * MARGIN + columns * (CROP + GAP) - GAP, height)
    canvas.text(MARGIN, 0.2, one_line(title), 15, weight="bold")
    y = 0.75
    for (heading, entries), n in zip(sections, rows, strict=True):
        canvas.text(MARGIN, y, one_line(heading), 13, weight="bold")
        y += 0.4
        for k, entry in enumerate(entries):
            x = MARGIN + k % columns * (CROP + GAP)
            _draw(canvas, entry, images[entry.file_name], x, y + k // columns * row_height)
        y += n * row_height
    note = (
        "w: imitation weight of the object (color of the box). D: the teacher's loss on it, with "
        "its largest component."
    )
    canvas.text(MARGIN, y, note, 10.5)
    return canvas


def _draw(canvas: Canvas, entry: Entry, image: np.ndarray, x: float, y: float) -> None:
    x1, y1, x2, y2 = entry.box
    side = round(max(CONTEXT * max(x2 - x1, y2 - y1), MIN_SIDE))
    top, bottom = _window((y1 + y2) / 2, side, image.shape[0])
    left, right = _window((x1 + x2) / 2, side, image.shape[1])
    crop = image[top:bottom, left:right]
    height, width = (CROP * length / max(crop.shape[:2]) for length in crop.shape[:2])
    axes = canvas.image(enlarged(crop, 200), x, y + CROP - height, width, height)
    scale = axes.get_xlim()[1] / crop.shape[1]
    corner = scale * (x1 - left), scale * (y1 - top)
    color = COLORMAP(min(entry.weight, 1.0))
    for line, width in ((casing(color), 4.0), (color, 2.2)):
        size = scale * (x2 - x1), scale * (y2 - y1)
        axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor=line, linewidth=width))
    category = f"{one_line(entry.category)}  w {entry.weight:.2f}"
    canvas.text(x, y + CROP + 0.05, category, 11, weight="bold")
    part = f"{name_of_part(entry.part)}, {100 * entry.share:.0f} %"
    text = f"D {entry.loss:.1f}, largest component: {part}"
    canvas.text(x, y + CROP + 0.26, "\n".join(textwrap.wrap(text, 28)), 9)
    name = textwrap.shorten(os.path.basename(entry.file_name), 30, placeholder="...")
    canvas.text(x, y + CROP + 0.80, name, 8, color="0.4")


def _window(center: float, length: int, end: int) -> tuple[int, int]:
    """Interval of a given length around a center, shifted and clipped to [0, end]."""
    length = min(length, end)
    start = min(max(round(center - length / 2), 0), end - length)
    return start, start + length
