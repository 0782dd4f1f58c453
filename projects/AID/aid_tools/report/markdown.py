"""A report as Markdown, with its pictures beside it."""

from tabulate import tabulate

from .parts import Heading, Part, Picture, Table, Text

__all__ = ["to_markdown"]


def to_markdown(title: str, parts: list[Part]) -> str:
    """The report as text."""
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
        case Picture(file, alt):
            return f"![{alt}]({file})"
