"""Labels of a folder, as the readers of all formats return them."""

from collections import Counter
from dataclasses import dataclass, field

__all__ = ["SPLITS", "LabeledImage", "LabeledObject", "Labels"]

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class LabeledObject:
    """Object in an image.

    Attributes:
        name: of its class.
        box: x1, y1, x2, y2 in pixels, as labeled: it may leave the image or have no area.
        mask: polygons or RLE in COCO's format; None without a mask.
        crowd: whether it is a region that COCO's metric ignores and training skips.
        difficult: whether the metric ignores it, while training does not.
    """

    name: str
    box: tuple[float, float, float, float]
    mask: list | dict | None = None
    crowd: bool = False
    difficult: bool = False


@dataclass
class LabeledImage:
    """Image with its objects.

    Attributes:
        path: of the image file.
        source: label file, for messages.
        objects: objects of the image.
        split: "train", "val" or "test"; None if the data do not say.
        size: width and height in pixels according to the labels; None if they do not say.
    """

    path: str
    source: str
    objects: list[LabeledObject]
    split: str | None = None
    size: tuple[int, int] | None = None


@dataclass
class Labels:
    """Labels of a folder.

    Attributes:
        classes: names of the classes, in the order of their ids.
        images: images with their objects.
        left_out: {description: number} of what was not read.
        format: name of the format that they were read in.
        elsewhere: see :class:`Images`.
        taken_as_empty: number of images without a label file that count as images without objects.
    """

    classes: list[str]
    images: list[LabeledImage]
    left_out: Counter = field(default_factory=Counter)
    format: str = ""
    elsewhere: dict[str, str] = field(default_factory=dict)
    taken_as_empty: int = 0
