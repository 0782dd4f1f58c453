"""Parts of a report, independent of the output format (markdown.py, html.py)."""

import math
from dataclasses import dataclass

__all__ = ["Heading", "Part", "ReportFigure", "Table", "TableCell", "Text", "code", "number"]


@dataclass(frozen=True)
class TableCell:
    """Cell of a table.

    Attributes:
        text: displayed text.
        value: sort key of the column; None if the cell is not a number.
    """

    text: str
    value: float | None = None


def number(value: float, form: str = "{:.1f}") -> TableCell:
    """Make a cell from a number and its format; NaN is a dash without a sort key."""
    return TableCell("-") if math.isnan(value) else TableCell(form.format(value), float(value))


def code(name: str) -> str:
    """Mark a name as code in a :class:`Text`."""
    return "`" + name.replace("`", "'") + "`"


@dataclass(frozen=True)
class Heading:
    """Heading that starts a section."""

    text: str


@dataclass(frozen=True)
class Text:
    """Paragraph; text in `backticks` is shown as code."""

    text: str


@dataclass(frozen=True)
class Table:
    """Table of a report.

    Attributes:
        caption: description for screen readers.
        header: column names; the first column holds the row names.
        rows: rows of the same length as the header.
    """

    caption: str
    header: list[str]
    rows: list[list[TableCell]]


@dataclass(frozen=True)
class ReportFigure:
    """Image of a report.

    Attributes:
        file: name of a PNG file in the report's folder.
        alt: description for screen readers.
        caption: explanation below the image.
    """

    file: str
    alt: str
    caption: str


Part = Heading | Text | Table | ReportFigure
