"""List and pictures of the labels with the largest teacher loss, for correction."""

import csv
import io
import math
from collections.abc import Iterable

import numpy as np
from detectron2.structures import BoxMode
from torch import Tensor

from aid.utils.files import write_text
from aid.utils.text import visible

from ..visualization.canvas import Canvas
from ..visualization.contact_sheet import Entry, draw_contact_sheet
from ..visualization.words import largest_part
from .instances import ImageStats

__all__ = ["SuspectPictures", "label_rows", "write_suspicious_labels"]

# Number of labels in the file, and of those with a picture, in rows that fit the report.
MOST = 100
PICTURED, COLUMNS = 10, 5
HEADER = ("image", "x1", "y1", "x2", "y2", "class", "D", "largest component", "weight")


def label_rows(record: dict, stats: ImageStats, classes: list[str]) -> list[tuple]:
    """Rows of the labels of an image, in the columns of HEADER.

    Args:
        record: of the dataset.
        stats: of the image.
        classes: class names, by category id.
    """
    rows = []
    for i, label in enumerate(stats.annotations):
        box = BoxMode.convert(label["bbox"], label["bbox_mode"], BoxMode.XYXY_ABS)
        part, _ = largest_part(stats.parts, i)
        rows.append(
            (
                record["file_name"],
                *(round(float(side), 2) for side in box),
                classes[label["category_id"]],
                _loss(stats.losses[i]),
                part,
                stats.weights[i].item(),
            )
        )
    return rows


def _loss(value: Tensor) -> float:
    """A loss as a number that can be compared: NaN counts as infinity."""
    return math.inf if value.isnan() else value.item()


def write_suspicious_labels(rows: Iterable[tuple], path: str) -> None:
    """Write the labels with the largest D, in descending order, as CSV.

    Args:
        rows: of :func:`label_rows`.
        path: of the file.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    loss = HEADER.index("D")
    for row in sorted(rows, key=lambda x: -x[loss])[:MOST]:
        writer.writerow([_cell(x) for x in row])
    write_text(path, text.getvalue())


def _cell(value: str | float) -> str:
    """Text of a cell. Spreadsheets would run a name as a formula if it started like one."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"'{visible(value)}" if value.startswith(("=", "+", "-", "@")) else visible(value)


class SuspectPictures:
    """Pictures of the labels with the largest D, of which only the images that they need are kept.

    Attributes:
        suspects: labels and their images (H, W, 3), RGB, uint8, in descending order of D.
    """

    def __init__(self) -> None:
        self.suspects: list[tuple[Entry, np.ndarray]] = []

    def add(self, record: dict, stats: ImageStats, classes: list[str]) -> None:
        """Add the labels of an image; see :func:`label_rows`."""
        for i, label in enumerate(stats.annotations):
            entry = Entry(
                record["file_name"],
                tuple(stats.boxes[i].tolist()),
                classes[label["category_id"]],
                stats.weights[i].item(),
                _loss(stats.losses[i]),
                *largest_part(stats.parts, i),
            )
            self.suspects.append((entry, stats.image))
        self.suspects = sorted(self.suspects, key=lambda x: -x[0].loss)[:PICTURED]

    def draw(self) -> Canvas:
        """Draw the contact sheet of the labels; there must be one."""
        entries = [entry for entry, _ in self.suspects]
        images = {entry.file_name: image for entry, image in self.suspects}
        heading = "Descending loss of the teacher, as in suspicious_labels.csv"
        return draw_contact_sheet([(heading, entries)], images, "Labels to check", COLUMNS)
