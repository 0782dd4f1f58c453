"""Writing of labels as the project reads them: a COCO file for each split, and the images."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from detectron2.structures import PolygonMasks
from pycocotools import mask as mask_util

from aid.data.coco import read_coco
from aid.data.masks import usable_mask
from aid.data.unlabeled import upright_size
from aid.utils.errors import AIDError
from aid.utils.files import write_text
from aid.utils.text import counted

from ..files import clear_file_errors
from .labels import SPLITS, LabeledImage, LabeledObject, Labels

__all__ = ["Split", "box_advice", "convert", "write_splits"]

# Pixels by which boxes may leave their image without being counted.
TOLERANCE = 1.0


@dataclass(frozen=True)
class Split:
    """Split as it is written.

    Attributes:
        coco: content of its file.
        paths: of its images, in the order of ``coco["images"]``.
        repairs: numbers of boxes that were clipped to their image ("clipped"), and of those left
            out because they have no area ("without area") or are outside of it ("outside"). A
            region to ignore counts once, also if it is one of several classes.
    """

    coco: dict
    paths: list[str]
    repairs: Counter


def convert(labels: Labels) -> dict[str, Split]:
    """Convert labels to COCO's format, with boxes clipped to their images.

    Args:
        labels: labels, whose images all have a split.

    Returns:
        {name: split} of the splits that have images.

    Raises:
        AIDError: an image or a mask cannot be used, an image has another size than its labels say,
            or no box of a split can be right.
    """
    sizes = {x.path: upright_size(x.path) for x in labels.images}
    _check_sizes(labels.images, sizes)
    root = _root(sizes)
    splits = {}
    for name in SPLITS:
        images = sorted((x for x in labels.images if x.split == name), key=lambda x: x.path)
        if images:
            splits[name] = _to_coco(images, sizes, labels.classes, root)
    _check_boxes(labels, splits)
    return splits


def box_advice(name: str) -> str:
    """Requirement on the boxes of a format, for messages on those that do not fit their image."""
    if name == "yolo":
        return "YOLO's coordinates must be parts of the image, 0 to 1"
    layout = " as x, y, width and height" if name == "coco" else ""
    return f"boxes must be in pixels{layout}, and the images those that were labeled"


def _check_boxes(labels: Labels, splits: dict[str, Split]) -> None:
    """Check that the boxes of each split are not all wrong, as those in wrong units are."""
    for name, split in splits.items():
        images = [image for image in labels.images if image.split == name and image.objects]
        boxes = [x.box for image in images for x in image.objects]
        fault = ""
        if not split.coco["annotations"]:
            fault = "without area or outside of their image"
        elif labels.format != "yolo" and all(max(box) <= 1 for box in boxes):
            fault = "in the first pixel of their image"
        if boxes and fault:
            raise AIDError(
                f"{box_advice(labels.format)}: all {counted(len(boxes), 'label')} of {name} are "
                f"{fault}, first in {images[0].source}"
            )


def _root(paths: Iterable[str]) -> str:
    """Folder that contains all images."""
    return os.path.commonpath([os.path.dirname(os.path.abspath(x)) for x in paths])


def write_splits(splits: dict[str, Split], output: str, copy_images: bool) -> None:
    """Write a JSON file for each split, and the folder ``images``.

    Args:
        splits: result of :func:`convert`.
        output: folder to write to.
        copy_images: whether images are copied; otherwise ``images`` is a link to their folder.

    Raises:
        AIDError: a file or the link cannot be written.
    """
    folder = os.path.join(output, "images")
    if not copy_images:
        root = _root(x for split in splits.values() for x in split.paths)
        try:
            os.symlink(root, folder)
        except OSError as error:
            raise AIDError(
                f"{folder} cannot link to {root}: {error.strerror}: add --copy-images"
            ) from error
    for name, split in splits.items():
        images = zip(split.paths, split.coco["images"], strict=True) if copy_images else ()
        for source, image in images:
            target = os.path.join(folder, image["file_name"])
            with clear_file_errors(target):
                os.makedirs(os.path.dirname(target), exist_ok=True)
                shutil.copyfile(source, target)
        path = os.path.join(output, f"{name}.json")
        write_text(path, json.dumps(split.coco))
        read_coco(path, "convert the labels anew")


def _check_sizes(images: list[LabeledImage], sizes: dict[str, tuple[int, int]]) -> None:
    other = [x for x in images if x.size and x.size != sizes[x.path]]
    if other:
        (width, height), (w, h) = sizes[other[0].path], other[0].size
        raise AIDError(
            f"{len(other)} of {len(images)} images have another size than their labels say, first "
            f"{other[0].path}: {width}x{height} pixels, after its EXIF rotation if it has one, but "
            f"{w}x{h} in {other[0].source}: use the images that were labeled"
        )


def _to_coco(
    images: list[LabeledImage],
    sizes: dict[str, tuple[int, int]],
    classes: list[str],
    root: str,
) -> Split:
    entries, annotations, repairs = [], [], Counter()
    ids = {name: number for number, name in enumerate(classes, start=1)}
    for image_id, image in enumerate(images, start=1):
        width, height = sizes[image.path]
        name = os.path.relpath(os.path.abspath(image.path), root)
        entries.append({"id": image_id, "file_name": name, "width": width, "height": height})
        regions: set[tuple] = set()
        for x in image.objects:
            box = _clip(
                x.box, width, height, Counter() if x.crowd and x.box in regions else repairs
            )
            if x.crowd:
                regions.add(x.box)
            if box is None:
                continue
            mask = _mask(x, image, width, height)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": ids[x.name],
                    "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                    "area": _area(mask, box),
                    "iscrowd": int(x.crowd or (x.difficult and image.split != "train")),
                    **({"segmentation": mask} if mask else {}),
                }
            )
    categories = [{"id": number, "name": name} for name, number in ids.items()]
    coco = {"images": entries, "annotations": annotations, "categories": categories}
    return Split(coco, [x.path for x in images], repairs)


def _clip(
    box: tuple[float, float, float, float], width: int, height: int, repairs: Counter
) -> tuple[float, float, float, float] | None:
    """Clip a box to its image; None, counted in ``repairs``, if nothing is left."""
    x1, y1, x2, y2 = box
    if x2 <= x1 or y2 <= y1:
        repairs["without area"] += 1
        return None
    inside = max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
    if inside[2] <= inside[0] or inside[3] <= inside[1]:
        repairs["outside"] += 1
        return None
    repairs["clipped"] += max(abs(a - b) for a, b in zip(box, inside, strict=True)) > TOLERANCE
    return inside


def _mask(x: LabeledObject, image: LabeledImage, width: int, height: int) -> list | dict | None:
    try:
        return usable_mask(x.mask, width, height)
    except (OverflowError, ValueError) as error:
        raise AIDError(f"{image.source}: {x.name} in image {image.path}: {error}") from None


def _area(mask: list | dict | None, box: tuple[float, float, float, float]) -> float:
    if isinstance(mask, list):
        return PolygonMasks([mask]).area()[0].item()
    if isinstance(mask, dict):
        counts = mask["counts"]
        return float(sum(counts[1::2]) if isinstance(counts, list) else mask_util.area(mask))
    return (box[2] - box[0]) * (box[3] - box[1])
