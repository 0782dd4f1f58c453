"""Display names of the components of the teacher's per-instance loss D."""

__all__ = ["name_of_part", "reason"]

# Short name, and description of the error that a large component means.
PARTS = {
    "cls": ("class", "what it is"),
    "box": ("box", "where its edges are"),
    "ctr": ("center", "how central a point is in it"),
    "rpn_cls": ("objectness", "whether anything is there"),
    "rpn_box": ("proposal", "roughly where it is"),
}


def name_of_part(part: str) -> str:
    """Short display name of a component of D."""
    return PARTS.get(part, (part, part))[0]


def reason(part: str) -> str:
    """Description of the teacher error that a component of D measures."""
    return PARTS.get(part, (part, part))[1]
