"""Report as Markdown that links to its image files."""

from tabulate import tabulate

from .parts import Heading, Part, ReportFigure, Table, Text

__all__ = ["to_markdown"]


def to_markdown(title: str, parts: list[Part]) -> str:
    """Write a report as Markdown."""
    return "\n\n".join([f"# {title}", *map(_write, parts)]) + "\n"


def _write(part: Part) -> str:
    match part:
        case Heading(text):
            return f"## {text}"
        case Text(text):
            return text
        case Table(_, header, rows):
            texts = [[cell.text for cell in row] for row in rows]
            return tabulate(texts, header, tablefmt="github", disable_numparse=True)
        case ReportFigure(file, alt):
            return f"![{alt}]({file})"
