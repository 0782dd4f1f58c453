"""What a report consists of; markdown.py and html.py write it down."""

import math
from dataclasses import dataclass

__all__ = ["Cell", "Heading", "Part", "Picture", "Table", "Text", "number"]


@dataclass(frozen=True)
class Cell:
    """Of a table.

    Attributes:
        text: as it is shown.
        value: by which the column is sorted; None for what is no number.
    """

    text: str
    value: float | None = None


def number(value: float, form: str = "{:.1f}") -> Cell:
    """A cell with a number, shown by a format; NaN has no place in an order."""
    return Cell(form.format(value), None if math.isnan(value) else float(value))


@dataclass(frozen=True)
class Heading:
    """Starts a section."""

    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph; what stands in `backticks` is shown as code."""

    text: str


@dataclass(frozen=True)
class Table:
    """
    Attributes:
        caption: what it shows, for those who do not see the page.
        header: names of the columns; the first names the rows.
        rows: as long as the header.
    """

    caption: str
    header: list[str]
    rows: list[list[Cell]]


@dataclass(frozen=True)
class Picture:
    """
    Attributes:
        file: name of a PNG in the report's folder.
        alt: what it shows, for those who do not see it.
        caption: how to read it.
    """

    file: str
    alt: str
    caption: str


Part = Heading | Text | Table | Picture
