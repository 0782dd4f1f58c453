"""Report as Markdown that links to its image files."""

from collections.abc import Iterable

from tabulate import tabulate

from ..text import markdown_cell, markdown_text
from .parts import Heading, Part, ReportFigure, Table, Text

__all__ = ["markdown_table", "to_markdown"]


def to_markdown(title: str, parts: list[Part]) -> str:
    """Write a report as Markdown."""
    return "\n\n".join([f"# {markdown_text(title)}", *map(_write, parts)]) + "\n"


def markdown_table(rows: Iterable[Iterable[object]], header: Iterable[str]) -> str:
    """Write a table whose cells and header may have any characters."""
    texts = [[markdown_cell(str(cell)) for cell in row] for row in rows]
    names = list(map(markdown_cell, header))
    return tabulate(texts, names, tablefmt="github", disable_numparse=True)


def _write(part: Part) -> str:
    match part:
        case Heading(text):
            return f"## {markdown_text(text)}"
        case Text(text):
            return markdown_text(text)
        case Table(_, header, rows):
            return markdown_table([[cell.text for cell in row] for row in rows], header)
        case ReportFigure(file, alt):
            return f"![{markdown_text(alt)}]({file})"
