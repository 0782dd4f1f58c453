"""Random splits of images into training and validation."""

import random

from aid.utils.errors import AIDError

__all__ = ["draw_split"]


def draw_split(groups: list[list[str]], val_share: float, seed: int) -> tuple[list[str], list[str]]:
    """Draw a random split (train, val) of whole groups; both lists are sorted.

    Args:
        groups: groups of image names that must not be separated.
        val_share: share of the validation images. Groups are drawn one by one and added to
            validation if that brings its size closer to the share.
        seed: seed of the draw.

    Raises:
        AIDError: one of the two splits would be empty.
    """
    total = sum(map(len, groups))
    target = round(val_share * total) if 0 < val_share < 1 else 0
    val = []
    for group in random.Random(seed).sample(groups, len(groups)):
        if abs(len(val) + len(group) - target) < abs(len(val) - target):
            val += group
    if not 0 < len(val) < total:
        raise AIDError(
            f"--val-share {val_share} of {total} images in {len(groups)} groups leaves a split "
            "empty: choose another share, or give lists"
        )
    chosen = set(val)
    return sorted(x for group in groups for x in group if x not in chosen), sorted(val)
