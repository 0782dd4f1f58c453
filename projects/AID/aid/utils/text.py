"""Texts of unknown origin, such as file names and class names, made safe for each medium."""

import unicodedata

__all__ = ["counted", "figure_text", "markdown_cell", "markdown_text", "one_line", "visible"]

# Unicode categories: control characters, formats such as the direction of writing, surrogates (of
# bytes that are not UTF-8), and separators of lines and paragraphs.
HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
# Formats without which some scripts cannot be written.
JOINERS = "\u200c\u200d"
# Characters with a meaning in Markdown, as entities, which have none. "_" has none inside of words.
TEXT = {"&": "&amp;", "<": "&lt;"}
CELL = {**TEXT, "|": "&#124;", "`": "&#96;", "*": "&#42;", "\\": "&#92;"}


def counted(number: int, noun: str) -> str:
    """Number with its noun, which gets an s unless it is one: "1 image", "2 images"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def visible(text: str) -> str:
    r"""Replace characters that a terminal or a viewer would act on by escapes such as ``\x1b``."""
    if text.isprintable():
        return text
    return "".join(_escape(x) if _is_hidden(x) else x for x in text)


def _is_hidden(character: str) -> bool:
    return unicodedata.category(character) in HIDDEN and character not in JOINERS


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # Python's stand-in for a byte of a file name
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def one_line(text: str) -> str:
    """Join the lines of a text for a terminal; see :func:`visible`."""
    return visible(" ".join(text.split()))


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
