"""Labelme, with a JSON file for each image, and COCO, with one for all or for each split."""

import math
from collections import Counter, defaultdict

from .files import (
    LOOKED_AT,
    Images,
    LabelFiles,
    apply_lists,
    check_found,
    count_unlabeled,
    find_split,
    read_json,
    split_in_name,
)
from .labels import LabeledImage, LabeledObject, Labels
from .values import around, class_name, clear_errors, number, pixels, polygon, same_classes

__all__ = ["is_coco", "is_labelme", "read_coco", "read_labelme"]


def _has(files: LabelFiles, *keys: str) -> bool:
    contents = map(read_json, files.with_extension(".json")[:LOOKED_AT])
    return any(isinstance(x, dict) and all(key in x for key in keys) for x in contents)


def is_labelme(files: LabelFiles) -> bool:
    """Whether JSON files are of Labelme."""
    return _has(files, "shapes", "imagePath")


def read_labelme(files: LabelFiles, images: Images) -> Labels:
    """Read Labelme: rectangles, polygons, circles, and the boxes of masks.

    Raises:
        AIDError: a file is malformed, or images are missing.
    """
    contents = {}
    for path in files.with_extension(".json"):
        content = read_json(path)
        if isinstance(content, dict) and "shapes" in content:
            content.pop("imageData", None)  # the image itself, as text
            contents[path] = content
    names = {path: str(x.get("imagePath", "")) for path, x in contents.items()}
    labels = Labels([], [])
    for path, image in images.of_files(files, names).items():
        with clear_errors(path, "Labelme"):
            objects = _labelme_objects(contents[path]["shapes"], labels.left_out)
            size = _size(contents[path], "imageWidth", "imageHeight")
        split = find_split(files, images, path, image)
        labels.images.append(LabeledImage(image, path, objects, split, size))
    count_unlabeled(files, images, labels)
    apply_lists(files, images, labels)
    labels.classes = sorted({x.name for image in labels.images for x in image.objects})
    return labels


def _size(content: dict, width: str, height: str) -> tuple[int, int] | None:
    """Size of an image by two keys; None if one is missing, null or 0."""
    sides = content.get(width), content.get(height)
    return (pixels(sides[0]), pixels(sides[1])) if all(sides) else None


def _labelme_objects(shapes: list[dict], left_out: Counter) -> list[LabeledObject]:
    """Objects of an image. Shapes with the same label and group are parts of one object."""
    groups = defaultdict(list)
    for index, shape in enumerate(shapes):
        kind = shape.get("shape_type", "polygon")
        points = [(number(x), number(y)) for x, y in shape["points"]]
        if kind == "circle":  # its center, and a point on it
            (x, y), radius = points[0], math.dist(*points)
            points = [(x - radius, y - radius), (x + radius, y + radius)]
        elif kind not in ("rectangle", "polygon", "mask"):
            left_out[f"Labelme shapes of type {kind}"] += 1
            continue
        group = shape.get("group_id")
        key = ("shape", index) if group is None else ("group", group)
        mask = polygon(points) if kind == "polygon" else None
        groups[class_name(shape["label"]), key].append((points, mask))
    objects = []
    for (name, _), parts in groups.items():
        polygons = [mask[0] for _, mask in parts if mask]
        box = around([point for points, _ in parts for point in points])
        objects.append(LabeledObject(name, box, polygons if len(polygons) == len(parts) else None))
    return objects


def is_coco(files: LabelFiles) -> bool:
    """Whether JSON files are of COCO."""
    return _has(files, "images", "annotations", "categories")


def read_coco(files: LabelFiles, images: Images) -> Labels:
    """Read COCO, more leniently than :func:`aid.data.read_coco`: boxes may leave the image, and the
    fields ``area`` and ``iscrowd`` may be missing.

    Raises:
        AIDError: a file is malformed, images are missing, or files have different classes.
    """
    labels, lists, found = Labels([], []), {}, {}
    for path in files.with_extension(".json"):
        content = read_json(path)
        if not isinstance(content, dict) or "categories" not in content:
            continue
        split = split_in_name(path) or files.split_of(path)
        with clear_errors(path, "COCO's instance"):
            categories = sorted(content["categories"], key=lambda x: x["id"])
            lists[path] = [class_name(x["name"]) for x in categories]
            for key in ("categories", "images"):
                _check_ids(key, content[key])
            objects = _coco_objects(content["annotations"], categories, labels.left_out)
            for image in content["images"]:
                name = image["file_name"]
                found[f"{name} in {path}"] = images.find(files.beside(path, name), path, split)
                size = _size(image, "width", "height")
                of_image = objects.pop(image["id"], [])
                labels.images.append(
                    LabeledImage(found[f"{name} in {path}"], path, of_image, split, size)
                )
        if objects:
            labels.left_out["annotations of unknown images"] += sum(map(len, objects.values()))
    check_found(found, images)
    for image in labels.images:
        image.split = image.split or images.split_of(image.path)
    count_unlabeled(files, images, labels)
    labels.classes = same_classes(lists)
    return labels


def _check_ids(key: str, entries: list[dict]) -> None:
    for value, count in Counter(x["id"] for x in entries).items():
        if count > 1:
            raise ValueError(f"{key!r} has id {value} twice")


def _coco_objects(
    annotations: list[dict], categories: list[dict], left_out: Counter
) -> dict[int, list[LabeledObject]]:
    """{image id: objects}"""
    objects, names = defaultdict(list), {x["id"]: class_name(x["name"]) for x in categories}
    for annotation in annotations:
        box = annotation.get("bbox")
        if not box:
            left_out["annotations without a bbox"] += 1
            continue
        if annotation.get("keypoints"):
            left_out["keypoints of an object"] += 1
        if not isinstance(box, list) or len(box) != 4:
            raise ValueError(f"an annotation has 'bbox' {box!r}: it must be x, y, width, height")
        x, y, w, h = map(number, box)
        if annotation["category_id"] not in names:
            raise ValueError(f"category_id {annotation['category_id']} is not in 'categories'")
        crowd = annotation.get("iscrowd") or 0
        if crowd not in (0, 1):
            raise ValueError(f"an annotation has 'iscrowd' {crowd!r}: it must be 0 or 1")
        if annotation.get("ignore"):
            raise ValueError(
                f"an annotation has 'ignore' {annotation['ignore']!r}, which is not supported: set "
                "'iscrowd' to 1 for a region that the metric ignores, and take 'ignore' out"
            )
        objects[annotation["image_id"]].append(
            LabeledObject(
                names[annotation["category_id"]],
                (x, y, x + w, y + h),
                annotation.get("segmentation") or None,
                crowd=bool(crowd),
            )
        )
    return objects
