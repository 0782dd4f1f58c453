"""List of the labels with the largest teacher loss, for correction."""

import csv
import io
import math
from collections.abc import Iterable

from detectron2.structures import BoxMode
from torch import Tensor

from aid.utils.files import write_text
from aid.utils.text import visible

from .instances import ImageStats

__all__ = ["label_rows", "write_suspicious_labels"]

# Number of labels in the file.
MOST = 100
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
        parts = {name: _loss(x[i]) for name, x in stats.parts.items()}
        rows.append(
            (
                record["file_name"],
                *(round(float(side), 2) for side in box),
                classes[label["category_id"]],
                _loss(stats.losses[i]),
                max(parts, key=parts.get),
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
