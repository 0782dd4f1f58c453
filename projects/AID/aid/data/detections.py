"""Detections of a teacher on the training images, read from the files of any program.

A file is a list of results in COCO's format; a folder has one KITTI result file for each image,
with the image's name.
"""

import json
import logging
import os
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data.transforms import TransformList
from detectron2.structures import Boxes, BoxMode, Instances, pairwise_iou
from detectron2.utils import comm

from ..utils.errors import AIDError
from ..utils.text import counted
from .classes import class_list, known_classes
from .kitti_labels import parse_label_file
from .plausibility import warn_of_boxes

__all__ = ["DETECTIONS", "DetectionMapper", "transformed_boxes", "with_detections"]

# Key of an image's detections: in records an array (D, 6) of x1, y1, x2, y2, score and category id,
# in samples Instances with pred_boxes, scores and pred_classes.
DETECTIONS = "teacher_detections"

# What an entry of a COCO results file must have.
FIELDS = ("image_id", "category_id", "bbox", "score")

# IoU from which a detection finds a label of its class, and the share of labels to be found.
FOUND = 0.5
FEW = 0.1

# Bound of its numbers, in pixels.
LARGEST = 1e9


def transformed_boxes(
    boxes: np.ndarray, transforms: TransformList, image_shape: tuple[int, int]
) -> Boxes:
    """Transform boxes as Detectron2's mapper does those of labels, and clip them to the image.

    Args:
        boxes: (D, 4), XYXY in pixels of the original image.
        transforms: of the image.
        image_shape: height and width after the transforms.
    """
    height, width = image_shape
    boxes = transforms.apply_box(boxes).clip(min=0)
    return Boxes(np.minimum(boxes, [width, height, width, height]))


class DetectionMapper(DatasetMapper):
    """Detectron2's training mapper, which transforms a teacher's detections as it does labels."""

    def _transform_annotations(self, dataset_dict, transforms, image_shape):
        super()._transform_annotations(dataset_dict, transforms, image_shape)
        rows = dataset_dict.pop(DETECTIONS, None)
        if rows is None:
            return
        detections = Instances(image_shape)
        detections.pred_boxes = transformed_boxes(rows[:, :4], transforms, image_shape)
        detections.scores = torch.as_tensor(rows[:, 4], dtype=torch.float32)
        detections.pred_classes = torch.as_tensor(rows[:, 5], dtype=torch.int64)
        # As of labels, less than 1e-5 pixels may be left of a box, such as after a crop.
        dataset_dict[DETECTIONS] = detections[detections.pred_boxes.nonempty(threshold=1e-5)]


def with_detections(path: str, datasets: Sequence[str], records: list[dict]) -> list[dict]:
    """Add a teacher's detections to records, under the key :data:`DETECTIONS`.

    Args:
        path: see TEACHER.DETECTIONS in config/keys.py.
        datasets: names of the datasets of the records.
        records: in Detectron2's standard format.

    Raises:
        AIDError: the detections cannot be read, an entry is malformed or of an unknown image or
            class, images cannot be told apart, or no image has detections.
    """
    where = f"TEACHER.DETECTIONS {path}"
    if os.path.isdir(path):
        detections = _read_folder(where, path, datasets, records)
    else:
        detections = _read_json(where, path, datasets, records)
    if not any(detections):
        raise AIDError(
            f"{where} has nothing on any of {counted(len(records), 'training image')}, first "
            f"{records[0]['file_name']}: detect on the images of {', '.join(datasets)}"
        )
    missing = [x["file_name"] for x, rows in zip(records, detections, strict=True) if rows is None]
    if missing and comm.is_main_process():
        logging.getLogger(__name__).warning(
            "%s has nothing on %d of %d training images, first %s: nothing was detected there, or "
            "they were left out",
            where,
            len(missing),
            len(records),
            missing[0],
        )
    pairs = zip(records, detections, strict=True)
    records = [{**x, DETECTIONS: np.asarray(rows or [], float).reshape(-1, 6)} for x, rows in pairs]
    if comm.is_main_process():
        _compare_with_labels(where, records)
    return records


def _compare_with_labels(where: str, records: list[dict]) -> None:
    """Log how many labels the detections find; warn of boxes and ids that seem to be wrong."""
    warn_of_boxes(where, [{**x, "annotations": _as_labels(x[DETECTIONS])} for x in records])
    found = total = 0
    for record in records:
        labels = [x for x in record["annotations"] if not x.get("iscrowd", 0)]
        boxes = [BoxMode.convert(x["bbox"], x["bbox_mode"], BoxMode.XYXY_ABS) for x in labels]
        classes = torch.tensor([x["category_id"] for x in labels])
        rows = torch.as_tensor(record[DETECTIONS])
        iou = pairwise_iou(Boxes(torch.tensor(boxes).reshape(-1, 4)), Boxes(rows[:, :4]))
        hits = (iou >= FOUND) & (classes.reshape(-1, 1) == rows[:, 5])
        found, total = found + int(hits.any(dim=1).sum()), total + len(labels)
    numbers = (where, found, counted(total, "label"), FOUND)
    logger = logging.getLogger(__name__)
    logger.info("%s finds %d of %s: IoU with a box of the class at least %g", *numbers)
    if found < FEW * total:
        logger.warning(
            "%s finds only %d of %s (IoU with a box of the class at least %g): check the "
            "image ids, the class ids, and that boxes are x, y, width, height in pixels",
            *numbers,
        )


def _as_labels(rows: np.ndarray) -> list[dict]:
    return [{"bbox": x[:4], "bbox_mode": BoxMode.XYXY_ABS} for x in rows.tolist()]


def _read_folder(
    where: str, folder: str, datasets: Sequence[str], records: list[dict]
) -> list[list | None]:
    """Rows of each record from KITTI result files; None for a record without a file."""
    names = known_classes(datasets)
    # A space separates fields, and types are case-insensitive.
    types = {"_".join(name.split()).lower(): name for name in names or ()}
    if names is None or len(types) < len(names):
        raise AIDError(
            f"{where} is a folder of KITTI files, whose types cannot be told apart among the "
            f"classes of {datasets[0]}, {names}: write COCO's results as one JSON file"
        )
    stems = [os.path.splitext(os.path.basename(x["file_name"]))[0] for x in records]
    _check_distinct(where, stems, records, "write COCO's results as one JSON file")
    ids = {name: index for index, name in enumerate(names)}
    detections: list[list | None] = []
    for stem in stems:
        path = os.path.join(folder, f"{stem}.txt")
        if not os.path.isfile(path):
            detections.append(None)
            continue
        rows = []
        for x in parse_label_file(path, with_score=True, types=types):
            reason = _fault(x.bbox, x.score)
            if reason:
                raise AIDError(f"TEACHER.DETECTIONS: {path}, line {x.line + 1}: {reason}")
            rows.append([*x.bbox, x.score, ids[x.type]])
        detections.append(rows)
    return detections


def _read_json(
    where: str, path: str, datasets: Sequence[str], records: list[dict]
) -> list[list | None]:
    """Rows of each record from a list of COCO results; None for a record without an entry."""
    entries = _load(where, path)
    image_ids = [x.get("image_id") for x in records]
    _check_distinct(where, image_ids, records, "write a folder of KITTI files")
    # Records may be fewer than the datasets' images, of which some have no labels.
    classes: dict[object, dict[int, int]] = {}
    for name in datasets:
        image_ids_of = (x.get("image_id") for x in DatasetCatalog.get(name))
        classes |= dict.fromkeys(image_ids_of, _ids(name))
    rows = defaultdict(list)
    for number, entry in enumerate(entries):
        try:
            image_id, row = _row(entry, classes)
        except ValueError as error:
            raise AIDError(f"{where}, entry {number} (from 0): {error}") from None
        rows[image_id].append(row)
    return [rows.get(image_id) for image_id in image_ids]


def _load(where: str, path: str) -> list:
    try:
        with open(path, encoding="utf-8") as f:
            entries = json.load(f)
    except OSError as error:
        raise AIDError(
            f"{where} cannot be read ({error.strerror}): name a JSON file of COCO results, or a "
            "folder of KITTI files"
        ) from error
    except (ValueError, RecursionError) as error:
        raise AIDError(f"{where} is not a whole JSON file: {error}") from error
    if not isinstance(entries, list):
        raise AIDError(
            f"{where} is not a list of COCO results: write an object with {', '.join(FIELDS)} for "
            "each detection, or use the folder that tools/predict.py writes with --format kitti"
        )
    return entries


def _ids(dataset: str) -> dict[int, int]:
    """{category id in the dataset's own file: id of the class}."""
    metadata = MetadataCatalog.get(dataset)
    contiguous = range(len(class_list(dataset) or ()))
    return metadata.get("thing_dataset_id_to_contiguous_id", {k: k for k in contiguous})


def _row(entry: object, classes: dict[object, dict[int, int]]) -> tuple[object, list[float]]:
    """Image id of an entry, and its box XYXY, score and class.

    Args:
        classes: {image id: :func:`_ids` of its dataset}.

    Raises:
        ValueError: the entry is malformed.
    """
    if not isinstance(entry, dict) or not all(field in entry for field in FIELDS):
        raise ValueError(f"it is no object with {', '.join(FIELDS)}")
    image_id, category_id, box, score = (entry[field] for field in FIELDS)
    if not isinstance(image_id, int | str) or image_id not in classes:
        raise ValueError(f"image_id {image_id!r} is of no training image")
    known = classes[image_id]
    if not isinstance(category_id, int) or category_id not in known:
        raise ValueError(
            f"category_id {category_id!r} is none of the dataset's, {', '.join(map(str, known))}"
        )
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        raise ValueError(f"bbox is {box!r}: it must be x, y, width, height in pixels")
    x, y, width, height = box
    xyxy = (x, y, x + width, y + height)
    reason = _fault(xyxy, score)
    if reason:
        raise ValueError(reason)
    return image_id, [*xyxy, score, known[category_id]]


def _fault(box: Sequence[float], score: object) -> str:
    """Description of the fault of a box XYXY and its score; "" if there is none."""
    x1, y1, x2, y2 = box
    if not (x2 > x1 and y2 > y1):
        return f"the box from {x1:g}, {y1:g} to {x2:g}, {y2:g} has no area"
    if not _is_number(score) or not 0 <= score <= 1:
        return f"score is {score!r}: it must be in 0 to 1, as a probability"
    return ""


def _is_number(x: object) -> bool:
    # Compared as it is: an integer may be too large for a float.
    return isinstance(x, int | float) and not isinstance(x, bool) and abs(x) < LARGEST


def _check_distinct(where: str, keys: list, records: list[dict], advice: str) -> None:
    """Check that no two images have one key, by which the detections name them."""
    seen: dict[object, str] = {}
    for key, record in zip(keys, records, strict=True):
        first = seen.setdefault(key, record["file_name"])
        if key is None or first != record["file_name"]:
            raise AIDError(
                f"{where}: the detections of {first} and {record['file_name']} cannot be told "
                f"apart by {key!r}: {advice}, or train on one dataset"
            )
