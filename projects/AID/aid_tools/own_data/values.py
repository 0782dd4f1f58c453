"""Values and shapes in label files, common to several formats."""

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from aid.utils.errors import AIDError

__all__ = [
    "around",
    "class_name",
    "clear_errors",
    "number",
    "pixels",
    "polygon",
    "same_classes",
]

Point = tuple[float, float]


@contextmanager
def clear_errors(path: str, layout: str) -> Iterator[None]:
    """Convert errors of malformed content to an AIDError.

    Args:
        path: of the label file.
        layout: name of its format.

    Raises:
        AIDError: the block raised an error of missing or wrong values.
    """
    try:
        yield
    except KeyError as error:
        raise AIDError(f"{path}, in {layout} format, has no {error}: correct it") from error
    except (AttributeError, IndexError, OverflowError, TypeError, ValueError) as error:
        raise AIDError(f"{path} is not in {layout} format: {error}: correct it") from error


def number(text: object) -> float:
    """Convert a text or number to a finite number.

    Raises:
        ValueError: it is none.
    """
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{repr(text)[:40]} is not a finite number")
    return value


def pixels(text: object) -> int:
    """Convert a text or number to a whole number of pixels.

    Raises:
        ValueError: it is none.
    """
    value = number(text)
    if not value.is_integer():
        raise ValueError(f"{repr(text)[:40]} is not a whole number of pixels")
    return int(value)


def class_name(value: object) -> str:
    """Convert a value to the name of a class, without spaces around it.

    Raises:
        ValueError: it is no text, such as ``no`` in YAML, or has not exactly one line.
    """
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ValueError(f"class name {repr(value)[:40]} is no text: put the name in quotes")
    name = str(value).strip()
    if len(name.splitlines()) != 1:
        raise ValueError(f"class name {repr(value)[:40]} is blank or has several lines")
    return name


def around(points: list[Point]) -> tuple[float, float, float, float]:
    """Box x1, y1, x2, y2 around points."""
    xs, ys = zip(*points, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def polygon(points: list[Point]) -> list[list[float]] | None:
    """Mask of a polygon in COCO's format; None for less than three points."""
    return [[x for point in points for x in point]] if len(points) > 2 else None


def same_classes(lists: dict[str, list[str]]) -> list[str]:
    """The one list of classes of all files; empty if there is no file.

    Args:
        lists: {file: names of its classes}.

    Raises:
        AIDError: two lists differ, or a class is listed twice.
    """
    if not lists:
        return []
    (first, classes), *others = lists.items()
    for path, names in others:
        if names != classes:
            raise AIDError(
                f"{first} has the classes {', '.join(classes)}, but {path} has {', '.join(names)}: "
                "all splits need the same classes in the same order"
            )
    twice = [name for name, count in Counter(classes).items() if count > 1]
    if twice:
        raise AIDError(f"{first} lists class {twice[0]} twice: rename one")
    return classes
