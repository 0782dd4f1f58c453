"""Texts of unknown origin made safe for figures and Markdown."""

from aid.utils.text import one_line, visible

__all__ = ["figure_text", "markdown_cell", "markdown_text"]

# Characters with a meaning in Markdown, as entities, which have none. "_" has none inside of words.
TEXT = {"&": "&amp;", "<": "&lt;"}
CELL = {**TEXT, "|": "&#124;", "`": "&#96;", "*": "&#42;", "\\": "&#92;"}


def figure_text(text: str) -> str:
    """Make a text safe for Matplotlib, which sets text between ``$`` as formulas.

    Line breaks stay.
    """
    return "\n".join(map(visible, text.split("\n"))).replace("$", r"\$")


def markdown_text(text: str) -> str:
    """Make a paragraph or heading safe for Markdown; text in `backticks` stays code."""
    parts = one_line(text).split("`")
    closed = (len(parts) - 1) // 2 * 2  # a last, single backtick starts no code
    return "`".join(
        part if i % 2 and i < closed else part.translate(str.maketrans(TEXT))
        for i, part in enumerate(parts)
    )


def markdown_cell(text: str) -> str:
    """Make a text safe for a cell of a Markdown table."""
    return visible(text).translate(str.maketrans(CELL)).replace("](", "]&#40;")  # no link
