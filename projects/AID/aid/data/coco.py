"""Datasets in COCO's instance format, validated and in Detectron2's standard format.

Detectron2's own loader silently replaces an image whose id is repeated, and drops objects whose
polygons are malformed.
"""

import json
import logging
import math
import os
from collections import Counter
from collections.abc import Sequence

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from pycocotools import mask as mask_util

from ..utils.errors import AIDError
from ..utils.text import counted
from .images import MAX_PIXELS, in_threads
from .masks import usable_mask

__all__ = ["load_coco", "read_coco", "register_coco"]

# COCO's metric stores ids as 64-bit integers.
MAX_ID = 2**63 - 1

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
        if max(map(abs, ids[key]), default=0) > MAX_ID:
            raise ValueError(f"{key!r} has an id beyond {MAX_ID}")
    _unique("images", "file_name", coco["images"])
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
        if min(size) < 1 or size[0] * size[1] > MAX_PIXELS:
            raise ValueError(
                f"image {image_id} has width and height {size}: they must be 1 or more, with "
                f"at most {MAX_PIXELS} pixels"
            )
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
        if not 0 <= annotation["area"] < math.inf:  # of less, COCO's metric ignores the object
            raise ValueError(
                f"annotation {annotation['id']} has area {annotation['area']}: it must be a number "
                "of pixels, 0 or more"
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


def load_coco(
    name: str, json_file: str, image_root: str, how_to_get: str, min_score: float | None = None
) -> list[dict]:
    """Load a dataset in Detectron2's standard format; boxes are XYWH in pixels.

    Args:
        name: of the dataset in Detectron2's catalogs; its metadata receive the classes.
        json_file: path of the instance annotations in COCO's format.
        image_root: folder of the images.
        how_to_get: instruction in the error message if data are missing.
        min_score: least score of an object if the annotations are detections, which have a
            "score"; None if they are not.

    Raises:
        AIDError: see :func:`read_coco`; an image is missing, or the classes differ from the
            registered ones.
    """
    coco = read_coco(json_file, how_to_get)
    if not os.path.isdir(image_root):
        link = f", a link to {os.readlink(image_root)}," if os.path.islink(image_root) else ""
        raise AIDError(f"image folder {image_root}{link} does not exist: {how_to_get}")
    files = [x["file_name"] for x in coco["images"]]
    exists = in_threads(lambda name: os.path.isfile(os.path.join(image_root, name)), files)
    missing = [name for name, there in zip(files, exists, strict=True) if not there]
    if missing:
        raise AIDError(
            f"{image_root} lacks {len(missing)} of {counted(len(files), 'image')} in {json_file}, "
            f"first {missing[0]}: {how_to_get}"
        )
    names = [x["name"] for x in sorted(coco["categories"], key=lambda x: x["id"])]
    registered = MetadataCatalog.get(name).get("thing_classes", names)
    if names != registered:
        raise AIDError(f"{json_file} has the categories {names}, registered are {registered}")
    metadata = MetadataCatalog.get(name)
    metadata.thing_classes = names
    category_ids = sorted(x["id"] for x in coco["categories"])
    # COCO's evaluator translates the classes back.
    metadata.thing_dataset_id_to_contiguous_id = {k: i for i, k in enumerate(category_ids)}
    try:
        records = _to_records(
            coco, image_root, metadata.thing_dataset_id_to_contiguous_id, min_score
        )
    except (OverflowError, ValueError) as error:
        raise AIDError(f"{json_file} is not in COCO's instance format: {error}") from None
    logger, number = logging.getLogger(__name__), counted(len(records), "image")
    logger.info("%s: %s in %s", name, number, json_file)
    labels = coco["annotations"]
    if labels and min_score is not None and not any("score" in x for x in labels):
        logger.warning(
            "%s: min_score is %g, but no annotation has a score: all of them are kept",
            json_file,
            min_score,
        )
    return records


def _to_records(
    coco: dict, image_root: str, classes: dict[int, int], min_score: float | None
) -> list[dict]:
    """Convert valid content to Detectron2's standard format, with the images in order of their ids.

    Objects without a mask have no "segmentation"; objects whose mask has no usable polygon have an
    empty list.
    """
    records = {
        x["id"]: {
            "file_name": os.path.join(image_root, x["file_name"]),
            "height": x["height"],
            "width": x["width"],
            "image_id": x["id"],
            "annotations": [],
        }
        for x in sorted(coco["images"], key=lambda x: x["id"])
    }
    for annotation in coco["annotations"]:
        record = records[annotation["image_id"]]
        label = {key: annotation[key] for key in ("iscrowd", "bbox")}
        label["category_id"] = classes[annotation["category_id"]]
        label["bbox_mode"] = BoxMode.XYWH_ABS
        try:
            if "score" in annotation:
                label["score"] = _read_score(annotation["score"])
                if min_score is not None and label["score"] < min_score:
                    continue
            if annotation.get("segmentation"):
                label["segmentation"] = _read_mask(annotation["segmentation"], record)
            if annotation.get("keypoints"):
                label["keypoints"] = _read_keypoints(annotation["keypoints"])
        except (OverflowError, ValueError) as error:
            raise ValueError(
                f"annotation {annotation['id']} of image {annotation['image_id']}: {error}"
            ) from None
        record["annotations"].append(label)
    return list(records.values())


def _read_score(score: object) -> float:
    if not isinstance(score, (int, float)) or not 0 <= score <= 1:
        raise ValueError(f"its score is {score!r}: it must be a number from 0 to 1")
    return score


def _read_mask(segmentation: object, record: dict) -> list | dict:
    mask = usable_mask(segmentation, record["width"], record["height"]) or []
    if isinstance(mask, dict) and isinstance(mask["counts"], list):
        return mask_util.frPyObjects(mask, record["height"], record["width"])
    return mask


def _read_keypoints(keypoints: object) -> list[float]:
    """Read x, y, visibility of each keypoint; Detectron2 has coordinates, not pixel indices."""
    is_list = isinstance(keypoints, list) and len(keypoints) % 3 == 0
    if not is_list or not all(isinstance(x, (int, float)) and math.isfinite(x) for x in keypoints):
        raise ValueError("its keypoints must be x, y, visibility of each one")
    return [x if i % 3 == 2 else x + 0.5 for i, x in enumerate(keypoints)]


def register_coco(
    name: str,
    json_file: str,
    image_root: str,
    how_to_get: str = "check the path",
    classes: Sequence[str] | None = None,
    min_score: float | None = None,
) -> None:
    """Register a dataset under ``name``. Its files are read on first use only.

    Args:
        name: in Detectron2's catalogs.
        json_file, image_root, how_to_get: see :func:`load_coco`.
        classes: names in the order of their ids; None to read them from ``json_file``.
        min_score: see :func:`load_coco`.
    """
    DatasetCatalog.register(
        name, lambda: load_coco(name, json_file, image_root, how_to_get, min_score)
    )
    metadata = MetadataCatalog.get(name)
    metadata.set(json_file=json_file, image_root=image_root, evaluator_type="coco")
    metadata.has_detections = min_score is not None
    if classes is not None:
        metadata.thing_classes = list(classes)
