"""Checks of the masks in a dataset, before code in C or a detector like Mask R-CNN reads them."""

import logging
from importlib.util import find_spec
from itertools import pairwise

from detectron2.config import CfgNode

from ..utils.errors import AIDError
from ..utils.text import counted

__all__ = ["check_masks", "usable_mask"]

# Upper limit of the length of a polygon's outline in pixels. pycocotools stores each of its pixels
# five times.
MAX_OUTLINE = 1 << 22


def usable_mask(segmentation: object, width: int, height: int) -> list | dict | None:
    """Check the numbers in a mask, which pycocotools passes to code in C unchecked.

    Args:
        segmentation: polygons or RLE in COCO's format.
        width, height: size of the image in pixels.

    Returns:
        The polygons of six or more numbers, or the RLE. None if there is none, as for a missing
        mask, a box instead of a polygon, or nested points.

    Raises:
        ValueError: a number is not finite or far outside of the image, or an RLE is not one of the
            image.
    """
    if not segmentation:
        return None
    if isinstance(segmentation, dict):
        _check_rle(segmentation, width, height)
        return {**segmentation, "size": [height, width]}
    if not isinstance(segmentation, list):
        raise ValueError("its segmentation must be polygons, a list of lists, or an RLE")
    polygons = [x for x in segmentation if _is_polygon(x)]
    for polygon in polygons:
        _check_polygon(polygon, width, height)
    return polygons or None


def _is_polygon(x: object) -> bool:
    return (
        isinstance(x, list)
        and len(x) >= 6
        and len(x) % 2 == 0
        and set(map(type, x)) <= {int, float}
    )


def _check_polygon(polygon: list[float], width: int, height: int) -> None:
    for name, values, side in (("x", polygon[::2], width), ("y", polygon[1::2], height)):
        low, high = -side, 2 * side
        # A NaN is in no range, but may be neither the minimum nor the maximum.
        if not (low <= min(values) and max(values) <= high and sum(values) == sum(values)):
            wrong = next(x for x in values if not low <= x <= high)
            raise ValueError(
                f"its polygon has {name} {repr(wrong)[:20]}, far outside of the image of "
                f"{width}x{height} pixels: it must be x1, y1, x2, y2, ... in pixels"
            )
    # Most outlines are too short to be measured.
    if len(polygon) * max(width, height) * 2 > MAX_OUTLINE:
        points = list(zip(polygon[::2], polygon[1::2], strict=True))
        steps = (max(abs(a - c), abs(b - d)) for (a, b), (c, d) in pairwise([*points, points[0]]))
        if sum(steps) > MAX_OUTLINE:
            raise ValueError(
                f"its polygon has an outline of more than {MAX_OUTLINE} pixels: draw a simpler one"
            )


def _check_rle(rle: dict, width: int, height: int) -> None:
    size = rle.get("size")
    if not isinstance(size, (list, tuple)) or list(size) != [height, width]:
        raise ValueError(
            f"its segmentation is an RLE of size {repr(size)[:40]}: it must be "
            f"[{height}, {width}], height and width of the image"
        )
    counts = rle.get("counts")
    if isinstance(counts, (str, bytes)):
        counts = _decode_counts(counts)
    if not isinstance(counts, list) or set(map(type, counts)) - {int}:
        raise ValueError(
            "its segmentation is an RLE without valid counts: a list of whole numbers, or a string"
        )
    if min(counts, default=0) < 0 or sum(counts) != width * height:
        raise ValueError(
            f"its segmentation is an RLE whose counts add up to {str(sum(counts))[:20]}: they must "
            f"be 0 or more, and add up to {width * height}, the pixels of the image"
        )


def _decode_counts(text: str | bytes) -> list[int] | None:
    """Decode the compressed counts of an RLE; None if they are malformed.

    A number is a sequence of characters with 5 bits each, the lowest first. Bit 5 marks that
    another character follows, bit 4 of the last one a negative number. From the fourth number on
    they are differences to the number before the last.
    """
    counts, value, shift = [], 0, 0
    for byte in text if isinstance(text, bytes) else text.encode():
        bits = byte - 48
        if not 0 <= bits < 64 or shift > 30:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    return None if shift else counts


def check_masks(cfg: CfgNode, key: str, name: str, records: list[dict]) -> None:
    """Check that a dataset has usable masks, before Detectron2 reads the first one.

    Training leaves out objects whose mask is given, but has no usable polygon; their number is
    logged.

    Args:
        cfg: a config with MODEL.MASK_ON True.
        key: "TRAIN" or "TEST".
        name: of the dataset.
        records: of the dataset, in Detectron2's standard format.

    Raises:
        AIDError: a label has no mask, one that :func:`usable_mask` refuses, or one whose format
            training cannot read or crop.
    """
    labels = [
        (record, label)
        for record in records
        for label in record.get("annotations", ())
        # Training skips crowds, COCO's metric does not.
        if key == "TEST" or not label.get("iscrowd", 0)
    ]
    where = f"DATASETS.{key}: {name}"
    # The loader of COCO's format leaves an empty list where a mask has no usable polygon.
    empty = [record["file_name"] for record, label in labels if not label.get("segmentation")]
    missing = [record["file_name"] for record, label in labels if label.get("segmentation") is None]
    without = empty if key == "TEST" or len(empty) == len(labels) else missing
    if without:
        raise AIDError(
            f"{where} has no mask for {len(without)} of {counted(len(labels), 'object')}, "
            f"first in {without[0]}, but MODEL.MASK_ON is True: choose a detector without "
            "masks, or data with a segmentation for every object"
        )
    for record, label in labels:
        try:
            usable_mask(label["segmentation"], record["width"], record["height"])
        except (OverflowError, ValueError) as error:
            raise AIDError(f"{where}: an object in {record['file_name']}: {error}") from None
    if key == "TEST":
        return
    if empty:
        logging.getLogger(__name__).warning(
            "%s: %d of %d objects, first in %s, have no usable polygon in their segmentation (a "
            "list of six or more numbers): training leaves them out",
            where,
            len(empty),
            len(labels),
            empty[0],
        )
    labels = [(record, label) for record, label in labels if label["segmentation"]]
    polygons = sum(isinstance(label["segmentation"], list) for _, label in labels)
    if cfg.INPUT.MASK_FORMAT == "polygon" and polygons < len(labels):
        raise AIDError(
            f"{where} has masks that are no polygons, {len(labels) - polygons} of {len(labels)}: "
            "set INPUT.MASK_FORMAT to bitmask"
        )
    if cfg.INPUT.CROP.ENABLED and polygons and find_spec("shapely") is None:
        raise AIDError(
            f"{where} has masks that are polygons, which INPUT.CROP cuts with shapely: install it "
            "(pip install shapely), or turn INPUT.CROP.ENABLED off"
        )
