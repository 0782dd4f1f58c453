"""KITTI's 2D object detection data (Geiger et al., CVPR 2012) in Detectron2's dataset format.

Layout of the root folder, as of KITTI itself::

    training/image_2/000000.png
    training/label_2/000000.txt    see kitti_labels.py
    ImageSets/train.txt            one image name per line, without extension
    testing/image_2/000000.png     without public labels; for submissions to the benchmark
"""

import os

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from ..utils.commands import script_path
from ..utils.errors import AIDError
from .images import ImageFault, check_header, in_threads
from .kitti_labels import CLASSES, IGNORED_AS, parse_label_file

__all__ = [
    "load_image",
    "load_kitti",
    "load_kitti_test",
    "read_names",
    "read_size",
    "register_kitti",
    "register_kitti_test",
]

PREPARE = "datasets/prepare_kitti.py"


def load_kitti(
    root: str, split: str, how_to_get: str, min_score: float | None = None
) -> list[dict]:
    """Load one split in Detectron2's standard format.

    Objects of other types become ``iscrowd`` regions of the classes that they resemble, see
    :data:`~aid.data.kitti_labels.IGNORED_AS`: COCO's metric ignores detections there, and training
    skips them. Annotations have additional keys: KITTI's ``truncated`` and ``occluded``, and
    ``label_index``, the line in the label file, counted from 0.

    Args:
        root: a folder in KITTI's layout.
        split: name of a file in ``root``/ImageSets, without extension.
        how_to_get: instruction in the error message if data are missing.
        min_score: least score of an object if the label files are result files, which have scores;
            None if they are not. Annotations then have the key ``score``.

    Raises:
        AIDError: a folder, the split, an image or a label is missing or malformed.
    """
    training = os.path.join(root, "training")
    for folder in (os.path.join(training, "image_2"), os.path.join(training, "label_2")):
        if not os.path.isdir(folder):
            raise AIDError(f"KITTI data: folder {folder} does not exist: {how_to_get}")
    numbered = list(enumerate(_read_split(root, split)))
    return in_threads(lambda x: load_image(training, x[1], x[0], min_score), numbered)


def _read_split(root: str, split: str) -> list[str]:
    path = os.path.join(root, "ImageSets", f"{split}.txt")
    if not os.path.isfile(path):
        script = script_path(PREPARE)
        raise AIDError(
            f"KITTI data: split file {path} does not exist: run `python {script} --root {root}`"
        )
    return read_names(path)


def read_names(path: str) -> list[str]:
    """Read a list of image names, one per line.

    Raises:
        AIDError: the file cannot be read or is empty, or a name is invalid or listed twice.
    """
    try:
        with open(path, encoding="utf-8-sig") as f:
            lines = [line.strip() for line in f]
    except (OSError, UnicodeDecodeError) as error:
        raise AIDError(f"{path} cannot be read as a list of image names: {error}") from error
    names = {}  # {name: line number}, in the order of the file
    for number, name in enumerate(lines, start=1):
        if name in names:
            raise AIDError(
                f"{path} lists image {name} twice, on lines {names[name]} and {number}: remove one"
            )
        if "/" in name or "\0" in name:
            raise AIDError(
                f"{path}, line {number}: {name!r} is no image name: they have no folder in KITTI"
            )
        if name:
            names[name] = number
    if not names:
        raise AIDError(f"{path} is empty: it must list image names, one a line")
    return list(names)


def read_size(file_name: str) -> tuple[int, int]:
    """Read width and height of an image from its header.

    Raises:
        AIDError: the image does not exist, or its header shows that it cannot be used.
    """
    try:
        return check_header(file_name)
    except FileNotFoundError:
        raise AIDError(
            f"image {file_name} does not exist, but is listed: complete the images, or draw the "
            f"split anew with {script_path(PREPARE)}"
        ) from None
    except ImageFault as error:
        raise AIDError(f"image {file_name} cannot be read: {error}") from error


def load_image(training: str, name: str, image_id: int, min_score: float | None = None) -> dict:
    """Load the record of one image in :func:`load_kitti`.

    Args:
        training: folder that contains image_2 and label_2.
        name: of the image, without extension.
        image_id: of the record.
        min_score: see :func:`load_kitti`.

    Raises:
        AIDError: the image or its label is missing or malformed.
    """
    file_name = os.path.join(training, "image_2", f"{name}.png")
    width, height = read_size(file_name)
    label_file = os.path.join(training, "label_2", f"{name}.txt")
    annotations = []
    for obj in parse_label_file(label_file, with_score=min_score is not None):
        if min_score is not None and obj.score < min_score:
            continue
        score = {} if min_score is None else {"score": obj.score}
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
                    **score,
                }
            )
    return {**_record(file_name, image_id, width, height), "annotations": annotations}


def _record(file_name: str, image_id: int, width: int, height: int) -> dict:
    return {"file_name": file_name, "image_id": image_id, "height": height, "width": width}


def load_kitti_test(root: str, how_to_get: str) -> list[dict]:
    """Load KITTI's test set, which has no public labels, in Detectron2's standard format.

    Args:
        root: a folder in KITTI's layout.
        how_to_get: instruction in the error message if data are missing.

    Raises:
        AIDError: there are no images, or one cannot be read.
    """
    folder = os.path.join(root, "testing", "image_2")
    if not os.path.isdir(folder):
        raise AIDError(f"KITTI data: folder {folder} does not exist: {how_to_get}")
    paths = sorted(os.path.join(folder, x) for x in os.listdir(folder) if x.endswith(".png"))
    if not paths:
        raise AIDError(f"KITTI data: folder {folder} holds no .png file: {how_to_get}")
    sizes = in_threads(read_size, paths)
    return [_record(path, i, *sizes[i]) for i, path in enumerate(paths)]


def register_kitti(
    name: str, root: str, split: str, how_to_get: str, min_score: float | None = None
) -> None:
    """Register a split under ``name``. Its files are read on first use only.

    Args:
        name: in Detectron2's catalogs.
        root, split, how_to_get, min_score: see :func:`load_kitti`.
    """
    DatasetCatalog.register(name, lambda: load_kitti(root, split, how_to_get, min_score))
    MetadataCatalog.get(name).set(
        thing_classes=list(CLASSES),
        evaluator_type="kitti",
        kitti_root=root,
        kitti_labels=os.path.join(root, "training", "label_2"),
        has_detections=min_score is not None,
    )


def register_kitti_test(name: str, root: str, how_to_get: str) -> None:
    """Register the test set under ``name``, to write result files for submission.

    Args:
        name: in Detectron2's catalogs.
        root, how_to_get: see :func:`load_kitti_test`.
    """
    DatasetCatalog.register(name, lambda: load_kitti_test(root, how_to_get))
    MetadataCatalog.get(name).set(
        thing_classes=list(CLASSES), evaluator_type="kitti", kitti_labels=None
    )
