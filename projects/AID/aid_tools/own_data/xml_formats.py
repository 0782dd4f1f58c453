"""Pascal VOC, with an XML file for each image, and CVAT for images 1.1, with one for all."""

import math
from collections import Counter
from xml.etree.ElementTree import Element

from aid.utils.errors import AIDError

from .files import (
    LOOKED_AT,
    Images,
    LabelFiles,
    apply_lists,
    check_found,
    count_unlabeled,
    find_split,
    read_xml,
    split_named,
)
from .labels import LabeledImage, LabeledObject, Labels
from .values import around, class_name, clear_errors, number, pixels, polygon, same_classes

__all__ = ["is_cvat", "is_voc", "read_cvat", "read_voc"]


def _roots(files: LabelFiles) -> set[str]:
    return {read_xml(path).tag for path in files.with_extension(".xml")[:LOOKED_AT]}


def _text(node: Element, key: str) -> str:
    text = (node.findtext(key) or "").strip()
    if not text:
        raise ValueError(f"<{node.tag}> has no <{key}>")
    return text


def is_voc(files: LabelFiles) -> bool:
    """Whether XML files are of Pascal VOC."""
    return "annotation" in _roots(files)


def read_voc(files: LabelFiles, images: Images) -> Labels:
    """Read Pascal VOC. Pixels are counted from 1, as in Detectron2's own reader.

    Raises:
        AIDError: a file is malformed, or images are missing.
    """
    roots = {path: read_xml(path) for path in files.with_extension(".xml")}
    roots = {path: root for path, root in roots.items() if root.tag == "annotation"}
    # Files that were renamed have the old name inside.
    found = images.of_files(files, {x: root.findtext("filename") for x, root in roots.items()})
    labels = Labels([], [])
    for path, image in found.items():
        with clear_errors(path, "Pascal VOC"):
            size = roots[path].find("size")
            keys = () if size is None else ("width", "height")
            sides = tuple(pixels(_text(size, x)) for x in keys)
            objects = [_voc_object(x) for x in roots[path].iterfind("object")]
        split = find_split(files, images, path, image)
        # Some programs write a size of 0.
        size = sides if sides and all(sides) else None
        labels.images.append(LabeledImage(image, path, objects, split, size))
    count_unlabeled(files, images, labels)
    apply_lists(files, images, labels)
    labels.classes = sorted({x.name for image in labels.images for x in image.objects})
    return labels


def _voc_object(node: Element) -> LabeledObject:
    box = node.find("bndbox")
    if box is None:
        raise ValueError("<object> has no <bndbox>")
    x1, y1, x2, y2 = (number(_text(box, key)) for key in ("xmin", "ymin", "xmax", "ymax"))
    corners = (x1 - 1, y1 - 1, x2, y2)
    difficult = (node.findtext("difficult") or "").strip().lower() in ("1", "true")
    return LabeledObject(class_name(_text(node, "name")), corners, difficult=difficult)


def is_cvat(files: LabelFiles) -> bool:
    """Whether XML files are of CVAT."""
    return "annotations" in _roots(files)


def read_cvat(files: LabelFiles, images: Images) -> Labels:
    """Read CVAT for images: boxes, polygons, and the boxes of masks.

    The classes are those of the list of labels in the file, or else those of the objects.

    Raises:
        AIDError: a file is malformed or one of CVAT for video, images are missing, or files have
            different lists of classes.
    """
    labels, lists, found, nodes = Labels([], []), {}, {}, []
    for path in files.with_extension(".xml"):
        root = read_xml(path)
        if root.tag != "annotations":
            continue
        if root.find("track") is not None:
            raise AIDError(f"{path} has tracks: export the task as CVAT for images 1.1")
        with clear_errors(path, "CVAT"):
            names = (_text(x, "name") for x in root.iterfind("meta//labels/label"))
            lists[path] = list(map(class_name, names))
            for node in root.iterfind("image"):
                subset = node.get("subset", "")
                if subset and not split_named(subset):
                    labels.left_out[f"subset names of images ({subset}, which is no split)"] += 1
                split = split_named(subset) or files.split_of(path)
                image = images.find(files.beside(path, node.attrib["name"]), path, split)
                found[f"{node.attrib['name']} in {path}"] = image
                nodes.append((path, node, image, split))
    check_found(found, images)
    for path, node, image, split in nodes:
        with clear_errors(path, "CVAT"):
            size = pixels(node.attrib["width"]), pixels(node.attrib["height"])
            shapes = [_cvat_object(x, labels.left_out) for x in node if "label" in x.attrib]
        objects, split = [x for x in shapes if x], split or images.split_of(image)
        labels.images.append(LabeledImage(image, path, objects, split, size))
    count_unlabeled(files, images, labels)
    sources = {x.name: image.source for image in labels.images for x in image.objects}
    labels.classes = same_classes({k: x for k, x in lists.items() if x}) or sorted(sources)
    for name in sorted(sources.keys() - set(labels.classes)):
        raise AIDError(f"{sources[name]} has label {name}, which is not in its list of labels")
    return labels


def _cvat_object(node: Element, left_out: Counter) -> LabeledObject | None:
    name, mask = class_name(node.attrib["label"]), None
    if node.tag == "box":
        corners = (number(node.attrib[x]) for x in ("xtl", "ytl", "xbr", "ybr"))
        box = _around_rotated(*corners, number(node.get("rotation", 0)))
    elif node.tag == "polygon":
        pairs = (x.split(",") for x in node.attrib["points"].split(";"))
        points = [(number(x), number(y)) for x, y in pairs]
        box, mask = around(points), polygon(points)
    elif node.tag == "mask":
        x, y, w, h = (number(node.attrib[k]) for k in ("left", "top", "width", "height"))
        box = x, y, x + w, y + h
    else:
        left_out[f"CVAT shapes of type {node.tag}"] += 1
        return None
    return LabeledObject(name, box, mask)


def _around_rotated(
    x1: float, y1: float, x2: float, y2: float, degrees: float
) -> tuple[float, float, float, float]:
    """Box around a box that is rotated about its center."""
    if not degrees:
        return x1, y1, x2, y2
    cos, sin = abs(math.cos(math.radians(degrees))), abs(math.sin(math.radians(degrees)))
    x, y, w, h = (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
    dx, dy = (w * cos + h * sin) / 2, (w * sin + h * cos) / 2
    return x - dx, y - dy, x + dx, y + dy
