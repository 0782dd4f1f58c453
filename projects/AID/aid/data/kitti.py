"""KITTI's 2D object detection data (Geiger et al., CVPR 2012) in Detectron2's dataset format.

Below a root folder, in KITTI's own layout::

    training/image_2/000000.png
    training/label_2/000000.txt
    ImageSets/train.txt            one image name per line, without extension

Labels are those of KITTI's object development kit: one object per line, 15 fields, of which the
first eight are type, truncation, occlusion, alpha and the box x1 y1 x2 y2 in pixels; result files
have the score as a sixteenth.
"""

import math
import os
from dataclasses import dataclass

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image, UnidentifiedImageError

from ..errors import AIDError

__all__ = [
    "CLASSES",
    "IGNORED_AS",
    "KITTIObject",
    "load_kitti",
    "parse_label_file",
    "register_kitti",
]

# The classes of the benchmark, in the order of their category ids.
CLASSES = ("Car", "Pedestrian", "Cyclist")
# The other types that KITTI labels, and for which classes they are neither right nor wrong.
IGNORED_AS = {
    "Van": ("Car",),
    "Person_sitting": ("Pedestrian",),
    "Truck": CLASSES,
    "Tram": CLASSES,
    "Misc": CLASSES,
    "DontCare": CLASSES,
}
_TYPES = {name.lower(): name for name in (*CLASSES, *IGNORED_AS)}
_NUM_FIELDS = 15


@dataclass(frozen=True)
class KITTIObject:
    """One line of a label or result file.

    Attributes:
        type: one of :data:`CLASSES` or of the keys of :data:`IGNORED_AS`.
        truncated: share of the object outside the image, 0 to 1; -1 where it is not known.
        occluded: 0 fully visible, 1 partly, 2 largely occluded, 3 unknown; -1 where not labelled.
        bbox: x1, y1, x2, y2 in pixels, from 0.
        score: of a detection; None in ground truth.
        line: number of the line in its file, from 0.
    """

    type: str
    truncated: float
    occluded: int
    bbox: tuple[float, float, float, float]
    score: float | None
    line: int


def parse_label_file(path: str, with_score: bool = False) -> list[KITTIObject]:
    """Read a file of KITTI labels, or of results.

    Args:
        path: of the text file. Upper and lower case of a type are the same, as in KITTI's own kit.
        with_score: the lines have a sixteenth field, the score.

    Raises:
        AIDError: the file cannot be read, or a line is malformed; the message names both.
    """
    try:
        with open(path, encoding="utf-8") as f:
            lines = f.read().splitlines()
    except FileNotFoundError:
        raise AIDError(f"label file {path} does not exist: every listed image needs one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise AIDError(f"label file {path} cannot be read as text: {error}") from error
    while lines and not lines[-1].strip():
        lines.pop()
    objects = []
    for number, line in enumerate(lines):
        try:
            objects.append(_parse_line(line, with_score, number))
        except ValueError as error:
            raise AIDError(f"{path}, line {number + 1}: {error}") from None
    return objects


def _parse_line(line: str, with_score: bool, number: int) -> KITTIObject:
    fields = line.split()
    expected = _NUM_FIELDS + with_score
    if len(fields) != expected:
        hint = ""
        if {len(fields), expected} == {_NUM_FIELDS, _NUM_FIELDS + 1}:
            hint = " (results have a score as field 16, labels do not)"
        raise ValueError(f"{len(fields)} fields where KITTI has {expected}{hint}")
    kind = _TYPES.get(fields[0].lower())
    if kind is None:
        known = ", ".join(_TYPES.values())
        raise ValueError(f"unknown type {fields[0]!r}: KITTI has {known}; call other objects Misc")
    for i, field in enumerate(fields[1:], start=2):
        if not _is_finite_number(field):
            raise ValueError(f"field {i} is {field!r}, not a finite number")
    truncated, occluded = float(fields[1]), float(fields[2])
    if truncated != -1 and not 0 <= truncated <= 1:
        raise ValueError(f"truncation {fields[1]} is neither within 0 to 1 nor -1")
    if occluded not in (-1, 0, 1, 2, 3):
        raise ValueError(f"occlusion {fields[2]} is not one of -1, 0, 1, 2, 3")
    x1, y1, x2, y2 = bbox = tuple(float(field) for field in fields[4:8])
    if x2 <= x1 or y2 <= y1:
        raise ValueError(f"box {' '.join(fields[4:8])} is empty: it must be x1 y1 x2 y2")
    score = float(fields[15]) if with_score else None
    return KITTIObject(kind, truncated, int(occluded), bbox, score, number)


def _is_finite_number(field: str) -> bool:
    try:
        return math.isfinite(float(field))
    except ValueError:
        return False


def load_kitti(root: str, split: str, how_to_get: str) -> list[dict]:
    """Load one split in Detectron2's standard format.

    Objects of other types are kept as ``iscrowd`` regions of the classes that they resemble: COCO's
    metric then counts detections there neither as right nor as wrong, and training skips them. Each
    annotation keeps KITTI's ``truncated`` and ``occluded``, and as ``label_index`` the number of
    its line in the label file, from 0.

    Args:
        root: a folder in KITTI's layout.
        split: name of a file in ``root``/ImageSets, without extension.
        how_to_get: what to do if the data are not there, for the error message.

    Raises:
        AIDError: a folder, the split, an image or a label is missing or malformed.
    """
    training = os.path.join(root, "training")
    for folder in (os.path.join(training, "image_2"), os.path.join(training, "label_2")):
        if not os.path.isdir(folder):
            raise AIDError(f"KITTI data: folder {folder} does not exist: {how_to_get}")
    return [
        _load_image(training, name, image_id)
        for image_id, name in enumerate(_read_split(root, split, how_to_get))
    ]


def _read_split(root: str, split: str, how_to_get: str) -> list[str]:
    path = os.path.join(root, "ImageSets", f"{split}.txt")
    if not os.path.isfile(path):
        raise AIDError(
            f"KITTI data: split file {path} does not exist: run `python datasets/prepare_kitti.py "
            f"--root {root}`"
        )
    with open(path) as f:
        names = [line.strip() for line in f if line.strip()]
    if not names:
        raise AIDError(f"KITTI data: split file {path} is empty: {how_to_get}")
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise AIDError(f"KITTI data: split file {path} lists image {twice} twice: remove one")
    return names


def _load_image(training: str, name: str, image_id: int) -> dict:
    file_name = os.path.join(training, "image_2", f"{name}.png")
    try:
        with Image.open(file_name) as image:  # reads the header only
            width, height = image.size
    except FileNotFoundError:
        raise AIDError(
            f"KITTI data: image {file_name} is listed in ImageSets but does not exist"
        ) from None
    except (OSError, UnidentifiedImageError) as error:
        raise AIDError(f"KITTI data: image {file_name} cannot be read: {error}") from error
    label_file = os.path.join(training, "label_2", f"{name}.txt")
    annotations = []
    for obj in parse_label_file(label_file):
        if obj.bbox[0] >= width or obj.bbox[1] >= height or min(obj.bbox[2:]) <= 0:
            raise AIDError(
                f"{label_file}, line {obj.line + 1}: box {obj.bbox} lies outside its image of "
                f"{width}x{height} pixels"
            )
        for category in (obj.type,) if obj.type in CLASSES else IGNORED_AS[obj.type]:
            annotations.append(
                {
                    "bbox": list(obj.bbox),
                    "bbox_mode": BoxMode.XYXY_ABS,
                    "category_id": CLASSES.index(category),
                    "iscrowd": int(obj.type not in CLASSES),
                    "truncated": obj.truncated,
                    "occluded": obj.occluded,
                    "label_index": obj.line,
                }
            )
    return {
        "file_name": file_name,
        "image_id": image_id,
        "height": height,
        "width": width,
        "annotations": annotations,
    }


def register_kitti(name: str, root: str, split: str, how_to_get: str) -> None:
    """Register a split under ``name``. No file is looked at before the dataset is used.

    Args:
        name: in Detectron2's catalogs.
        root, split, how_to_get: see :func:`load_kitti`.
    """
    DatasetCatalog.register(name, lambda: load_kitti(root, split, how_to_get))
    MetadataCatalog.get(name).set(
        thing_classes=list(CLASSES), evaluator_type="coco", kitti_root=root, kitti_split=split
    )
