"""Warnings of datasets that can be read, but seem to be wrong."""

import logging
import os

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode

__all__ = ["warn_of_boxes", "warn_of_test_images"]

# Share of the boxes that may leave their image by more than a pixel.
FEW = 0.1


def warn_of_boxes(where: str, records: list[dict]) -> None:
    """Log a warning if many boxes leave their image, or if all lie within one pixel.

    Args:
        where: config key and name of the dataset, for the message.
        records: of the dataset, in Detectron2's standard format.
    """
    total = outside = normalized = 0
    for record in records:
        width, height = record.get("width"), record.get("height")
        for label in record.get("annotations", ()):
            box, mode = label.get("bbox"), label.get("bbox_mode")
            if mode not in (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS) or width is None or height is None:
                continue
            x, y, right, bottom = box
            if mode == BoxMode.XYWH_ABS:
                right, bottom = x + right, y + bottom
            total += 1
            outside += bool(min(x, y) < -1 or right > width + 1 or bottom > height + 1)
            normalized += bool(max(box) <= 1)
    logger = logging.getLogger(__name__)
    if total and normalized == total:
        logger.warning(
            "%s: all boxes lie within one pixel: boxes are in pixels, not in parts of the image",
            where,
        )
    elif outside > FEW * total:
        logger.warning(
            "%s: %d of %d boxes leave their image: COCO's boxes are x, y, width, height; if these "
            "are x1, y1, x2, y2, convert them",
            where,
            outside,
            total,
        )


def warn_of_test_images(cfg: CfgNode) -> None:
    """Log a warning if a detector trains on images of DATASETS.TEST.

    Those of DATASETS.UNLABELED are recognized by whatever path.
    """
    tested = _paths(cfg.DATASETS.TEST)
    for key, identity in (("TRAIN", os.path.abspath), ("UNLABELED", _file)):
        files = set(map(identity, _paths(cfg.DATASETS[key]))) - {None}
        known = [path for path in tested if files and identity(path) in files]
        if known:
            logging.getLogger(__name__).warning(
                "%d of %d images of DATASETS.TEST, first %s, are in DATASETS.%s, too: the detector "
                "trains on them, so that its AP may be higher than on new images",
                len(known),
                len(tested),
                known[0],
                key,
            )


def _paths(datasets: tuple[str, ...]) -> list[str]:
    return [x["file_name"] for name in datasets for x in DatasetCatalog.get(name)]


def _file(path: str) -> tuple[int, int] | None:
    """Identity of a file, the same by all of its paths; None if it is not on this machine."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
