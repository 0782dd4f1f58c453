"""Texts of unknown origin, such as file names and class names, made safe for terminals."""

import unicodedata

__all__ = ["counted", "one_line", "visible"]

# Unicode categories: control characters, formats such as the direction of writing, surrogates (of
# bytes that are not UTF-8), and separators of lines and paragraphs.
HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
# Formats without which some scripts cannot be written.
JOINERS = "\u200c\u200d"


def counted(number: int, noun: str) -> str:
    """Number with its noun, in the plural unless it is one: "1 image", "2 images", "2 classes"."""
    plural = "es" if noun.endswith("s") else "s"
    return f"{number} {noun}{'' if number == 1 else plural}"


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
