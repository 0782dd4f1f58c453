"""Assignment of labeled images to training, validation and test."""

import os
from collections import defaultdict

from aid.utils.errors import AIDError

from ..preparation.split import draw_split
from .files import Images, read_text
from .labels import SPLITS, LabeledImage

__all__ = ["assign_splits", "read_val_list"]


def assign_splits(
    images: list[LabeledImage], val_share: float | None, seed: int, whole_folders: bool
) -> str:
    """Set the split of every image.

    The split of the data is used if it has a validation set. Otherwise, or if a share is given, the
    validation images are drawn from all images but the test images.

    Args:
        images: images, whose ``split`` is set.
        val_share: share of the validation images; None for 0.2 where they are drawn.
        seed: seed of the draw.
        whole_folders: whether images of one folder stay together.

    Returns:
        Description of the split.

    Raises:
        AIDError: training or validation would have no image.
    """
    _check_not_all_test(images)
    for image in images:
        image.split = image.split or "train"
    if val_share is None and not whole_folders and any(x.split == "val" for x in images):
        if not any(x.split == "train" for x in images):
            raise AIDError("the data have a validation set, but no training set: give --val-share")
        return "that of the data"
    drawn = [x for x in images if x.split != "test"]
    groups = defaultdict(list)
    for image in drawn:
        groups[os.path.dirname(image.path) if whole_folders else image.path].append(image.path)
    share = 0.2 if val_share is None else val_share
    _, val = draw_split([groups[x] for x in sorted(groups)], share, seed)
    chosen = set(val)
    for image in drawn:
        image.split = "val" if image.path in chosen else "train"
    unit = "folders" if whole_folders else "images"
    return f"drawn at random by {unit}, validation share {share}, seed {seed}"


def read_val_list(path: str, images: list[LabeledImage]) -> str:
    """Set the split of the images: validation if a list names it, training otherwise.

    Images of the test set stay there.

    Args:
        path: text file with one name or path of an image a line.
        images: images, whose ``split`` is set.

    Returns:
        Description of the split.

    Raises:
        AIDError: the list cannot be read, or names none or all of the images, an unknown one, or
            one of the test set, or all images are of the test set.
    """
    _check_not_all_test(images)
    others = [x for x in images if x.split != "test"]
    for image in others:
        image.split = "train"
    by_path = {x.path: x for x in images}
    labeled = Images(os.path.commonpath(map(os.path.dirname, by_path)), list(by_path))
    names = [x.strip() for x in read_text(path).splitlines() if x.strip()]
    for name in names:
        found = labeled.find(name, path)
        if found not in by_path:
            raise AIDError(f"{path} lists {name}, which is no labeled image: correct the list")
        if by_path[found].split == "test":
            raise AIDError(f"{path} lists {name}, which is in the test set: correct the list")
        by_path[found].split = "val"
    if {x.split for x in others} != set(SPLITS[:2]):
        raise AIDError(f"{path} lists {len(names)} of {len(others)} images: list some of them")
    return f"validation images listed in {path}"


def _check_not_all_test(images: list[LabeledImage]) -> None:
    if all(x.split == "test" for x in images):
        raise AIDError(
            f"all {len(images)} labeled images are test images, by the names of folders or label "
            f"files or by lists, first {images[0].path} of {images[0].source}: rename them, or "
            "correct the lists"
        )
