"""Components of the teacher's per-instance loss D: the largest one, and display names."""

import math

from torch import Tensor

__all__ = ["largest_part", "name_of_part"]

PARTS = {
    "cls": "class",
    "box": "box",
    "ctr": "center",
    "rpn_cls": "objectness",
    "rpn_box": "proposal",
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
    """Display name of a component of D."""
    return PARTS.get(part, part)
