"""Components of the teacher's per-instance loss D: the largest one, and display names."""

import math

from torch import Tensor

__all__ = ["largest_part", "name_of_part", "reason"]

# Short name, and description of the error that a large component means.
PARTS = {
    "cls": ("class", "what it is"),
    "box": ("box", "where its edges are"),
    "ctr": ("center", "how central a point is in it"),
    "rpn_cls": ("objectness", "whether anything is there"),
    "rpn_box": ("proposal", "roughly where it is"),
}


def largest_part(parts: dict[str, Tensor], instance: int) -> tuple[str, float]:
    """Name and value of the largest component of an instance's D; NaN counts as infinity.

    Args:
        parts: {name: (G,)}, contribution of each component to D.
        instance: index of the instance.
    """
    values = {k: x[instance].nan_to_num(math.inf, math.inf).item() for k, x in parts.items()}
    return max(values.items(), key=lambda item: item[1])


def name_of_part(part: str) -> str:
    """Short display name of a component of D."""
    return PARTS.get(part, (part, part))[0]


def reason(part: str) -> str:
    """Description of the teacher error that a component of D measures."""
    return PARTS.get(part, (part, part))[1]
