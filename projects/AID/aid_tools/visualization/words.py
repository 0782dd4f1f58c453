"""Parts of the teacher's loss in plain words."""

__all__ = ["name_of_part", "reason"]

# Name on a picture, and what the teacher gets wrong where this part is large.
PARTS = {
    "cls": ("class", "what it is"),
    "box": ("box", "where its edges are"),
    "ctr": ("center", "how central a point is in it"),
    "rpn_cls": ("objectness", "whether anything is there"),
    "rpn_box": ("proposal", "roughly where it is"),
}


def name_of_part(part: str) -> str:
    """A part of D, as short as it can be said."""
    return PARTS.get(part, (part, part))[0]


def reason(part: str) -> str:
    """What a teacher is judged by whose loss is mostly this part."""
    return PARTS.get(part, (part, part))[1]
