"""Datasets in COCO's instance format, validated before Detectron2 reads them.

Detectron2's loader silently replaces an image whose id is repeated, and drops boxes of negative
size.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Sequence

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from ..utils.errors import AIDError

__all__ = ["load_coco", "read_coco", "register_coco"]

# Fields that Detectron2 and COCO's metric require, with their types.
FIELDS = {
    "categories": {"id": int, "name": str},
    "images": {"id": int, "file_name": str, "height": int, "width": int},
    "annotations": {
        "id": int,
        "image_id": int,
        "category_id": int,
        "bbox": list,
        "area": (int, float),
        "iscrowd": int,
    },
}


def read_coco(path: str, how_to_get: str) -> dict:
    """Read and validate a file of instance annotations.

    Args:
        path: of the JSON file.
        how_to_get: instruction in the error message if the file is missing or damaged.

    Raises:
        AIDError: the file is missing, cannot be read, or is not in COCO's format.
    """
    try:
        with open(path, encoding="utf-8") as f:
            text = f.read()
        if text.startswith("\ufeff"):
            raise AIDError(
                f"{path} starts with a byte-order mark, which COCO's metric cannot read: save it "
                "as UTF-8 without one"
            )
        coco = json.loads(text)
    except FileNotFoundError:
        raise AIDError(f"{path} does not exist: {how_to_get}") from None
    except OSError as error:
        raise AIDError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise AIDError(f"{path} is not a whole JSON file ({error}): {how_to_get}") from error
    try:
        _check(coco)
    except (OverflowError, ValueError) as error:
        raise AIDError(f"{path} is not in COCO's instance format: {error}") from None
    return coco


def _check(coco: object) -> None:
    ids = {}
    for key, fields in FIELDS.items():
        entries = coco.get(key) if isinstance(coco, dict) else None
        if not isinstance(entries, list):
            raise ValueError(f"it has no list {key!r}")
        for number, entry in enumerate(entries):
            for field, kind in fields.items():
                if not (isinstance(entry, dict) and isinstance(entry.get(field), kind)):
                    raise ValueError(f"entry {number} of {key!r} has no valid {field!r}")
        ids[key] = _unique(key, "id", entries)
    _unique("categories", "name", coco["categories"])
    if not coco["categories"]:
        raise ValueError("'categories' is empty")
    for number, image in enumerate(coco["images"]):
        if not _is_inside(image["file_name"]):
            raise ValueError(
                f"entry {number} of 'images' has file_name {image['file_name']!r}: it must be a "
                "path below the image folder"
            )
    sizes = {image["id"]: (image["width"], image["height"]) for image in coco["images"]}
    for image_id, size in sizes.items():
        if min(size) < 1:
            raise ValueError(f"image {image_id} has width and height {size}")
    for annotation in coco["annotations"]:
        if annotation["id"] < 1:
            raise ValueError(
                f"annotation id {annotation['id']}: count from 1, since COCO's metric takes 0 for "
                "no match"
            )
        for field, key in (("image_id", "images"), ("category_id", "categories")):
            if annotation[field] not in ids[key]:
                raise ValueError(
                    f"annotation {annotation['id']} has {field} {annotation[field]}, which is not "
                    f"in {key!r}"
                )
        if annotation.get("ignore", 0) != 0:
            raise ValueError(
                f"annotation {annotation['id']} has 'ignore' {annotation['ignore']!r}, which is "
                "not supported: set 'iscrowd' to 1 for a region that the metric ignores, and take "
                "'ignore' out"
            )
        if not _is_box(annotation["bbox"], *sizes[annotation["image_id"]]):
            raise ValueError(
                f"annotation {annotation['id']} of image {annotation['image_id']} has bbox "
                f"{annotation['bbox']}: it must be x, y, width, height in pixels, not outside of "
                "the image"
            )


def _unique(key: str, field: str, entries: list[dict]) -> set:
    values = Counter(entry[field] for entry in entries)
    if len(values) < len(entries):
        raise ValueError(f"{key!r} has {field} {values.most_common(1)[0][0]} twice")
    return set(values)


def _is_inside(path: str) -> bool:
    """Whether a relative path stays below its start; symbolic links are not resolved."""
    first = os.path.normpath(path).split(os.sep)[0]
    return not os.path.isabs(path) and first not in ("..", ".") and "\0" not in path


def _is_box(bbox: list, image_width: int, image_height: int) -> bool:
    if len(bbox) != 4 or not all(isinstance(n, (int, float)) and math.isfinite(n) for n in bbox):
        return False
    x, y, width, height = bbox
    # Boxes without area are valid: COCO 2017 has one, and training drops it.
    in_image = x < image_width and y < image_height and x + width >= 0 and y + height >= 0
    return min(width, height) >= 0 and in_image


def load_coco(name: str, json_file: str, image_root: str, how_to_get: str) -> list[dict]:
    """Load a dataset in Detectron2's standard format; boxes are XYWH in pixels.

    Args:
        name: of the dataset in Detectron2's catalogs; its metadata receive the classes.
        json_file: path of the instance annotations in COCO's format.
        image_root: folder of the images.
        how_to_get: instruction in the error message if data are missing.

    Raises:
        AIDError: see :func:`read_coco`; an image is missing, or the classes differ from the
            registered ones.
    """
    coco = read_coco(json_file, how_to_get)
    if not os.path.isdir(image_root):
        raise AIDError(f"image folder {image_root} does not exist: {how_to_get}")
    missing = [
        x["file_name"]
        for x in coco["images"]
        if not os.path.isfile(os.path.join(image_root, x["file_name"]))
    ]
    if missing:
        raise AIDError(
            f"{image_root}: {len(missing)} of {len(coco['images'])} images in {json_file} are not "
            f"there, first {missing[0]}: {how_to_get}"
        )
    names = [x["name"] for x in sorted(coco["categories"], key=lambda x: x["id"])]
    registered = MetadataCatalog.get(name).get("thing_classes", names)
    if names != registered:
        raise AIDError(f"{json_file} has the categories {names}, registered are {registered}")
    try:
        return load_coco_json(json_file, image_root, name)
    except (AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise AIDError(
            f"{json_file} is not in COCO's instance format, most likely in a segmentation or "
            f"keypoints: {reason}"
        ) from error


def register_coco(
    name: str,
    json_file: str,
    image_root: str,
    how_to_get: str = "check the path",
    classes: Sequence[str] | None = None,
) -> None:
    """Register a dataset under ``name``. Its files are read on first use only.

    Args:
        name: in Detectron2's catalogs.
        json_file, image_root, how_to_get: see :func:`load_coco`.
        classes: names in the order of their ids; None to read them from ``json_file``.
    """
    DatasetCatalog.register(name, lambda: load_coco(name, json_file, image_root, how_to_get))
    metadata = MetadataCatalog.get(name)
    metadata.set(json_file=json_file, image_root=image_root, evaluator_type="coco")
    if classes is not None:
        metadata.thing_classes = list(classes)
