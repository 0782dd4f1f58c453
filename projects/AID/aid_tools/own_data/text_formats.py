"""YOLO and KITTI, with a text file for each image."""

import io
import math
import os

import yaml

from aid.config.limits import read_limited
from aid.data.kitti_labels import CLASSES as KITTI_CLASSES
from aid.data.kitti_labels import IGNORED_AS, parse_label_file
from aid.data.unlabeled import upright_size
from aid.utils.errors import AIDError

from .files import (
    ROLES,
    Images,
    LabelFiles,
    apply_lists,
    check_found,
    count_unlabeled,
    find_split,
    read_text,
    split_named,
)
from .labels import SPLITS, LabeledImage, LabeledObject, Labels
from .values import around, class_name, clear_errors, number, polygon, same_classes

__all__ = ["is_kitti", "is_yolo", "read_kitti", "read_yolo"]

# Files of YOLO's layouts with the names of the classes, one a line.
NAME_LISTS = ("classes.txt", "obj.names", "_darknet.labels")
# Names of text files that list images, unless they have lines of numbers.
IMAGE_LISTS = ("train", "val", "valid", "test", "trainval")


def is_yolo(files: LabelFiles) -> bool:
    """Whether text files have lines of five or more numbers."""
    return any(map(_has_numbers, _yolo_files(files)))


def _yolo_files(files: LabelFiles) -> list[str]:
    """Text files that may be labels by their names."""
    stems = {x: _stem(x) for x in files.with_extension(".txt")}
    return [
        path
        for path, stem in stems.items()
        if os.path.basename(path) not in NAME_LISTS
        and not stem.lower().startswith("readme")
        and (stem not in IMAGE_LISTS or _has_numbers(path))
    ]


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]


def _has_numbers(path: str) -> bool:
    """Whether the first line that is not blank has five or more numbers, and nothing else."""
    try:
        fields = [number(x) for x in read_text(path).lstrip().partition("\n")[0].split()]
    except (AIDError, ValueError):
        return False
    return len(fields) >= 5


def read_yolo(files: LabelFiles, images: Images) -> Labels:
    """Read YOLO: boxes (class, center, width, height) and polygons, in parts of the image; of poses
    the boxes.

    The names of the classes are those in data.yaml, classes.txt, obj.names or _darknet.labels.
    An image without a label file has no objects.

    Raises:
        AIDError: a file is malformed, there are no or different names of classes, or images of
            labels are missing.
    """
    names, splits, keypoints = _read_names(files, images)
    texts = _yolo_files(files)
    # Others are lists of images or notes.
    paths = [x for x in texts if images.has(_stem(x)) or _has_numbers(x)]
    found = images.of_files(files, dict.fromkeys(paths))
    labeled = set(found.values())
    pairs = [(image, path) for path, image in found.items()]
    pairs += [(image, "") for image in images.paths if image not in labeled]
    labels = Labels(names, [])
    for image, path in sorted(pairs):
        if splits and image not in splits:
            labels.left_out["images that data.yaml or the lists do not name"] += 1
            continue
        objects = []
        if not path:
            labels.taken_as_empty += 1
        else:
            size = upright_size(image)
            with clear_errors(path, "YOLO"):
                lines = filter(None, map(str.split, read_text(path).splitlines()))
                objects = [_yolo_object(x, names, keypoints, *size) for x in lines]
            if keypoints and objects:
                labels.left_out["keypoints of an object"] += len(objects)
        split = splits.get(image) or (path and files.split_of(path)) or images.split_of(image)
        labels.images.append(LabeledImage(image, path or image, objects, split))
    return labels


def _read_names(files: LabelFiles, images: Images) -> tuple[list[str], dict[str, str], int]:
    """Names of the classes, {image: split} where a data.yaml or lists beside it say so, and the
    number of values that a line has for keypoints."""
    lists, splits, keypoints = {}, {}, 0
    for path in files.with_extension(".yaml", ".yml"):
        with clear_errors(path, "YOLO's data.yaml"):
            content = _read_yaml(path)
            if "names" not in content:
                continue
            lists[path] = _names_in(content)
            if content.get("kpt_shape"):
                keypoints = int(math.prod(map(number, content["kpt_shape"])))
            splits.update(_listed_splits(content, path, images))
    if not splits:
        splits = _splits_of_lists(files, images)
    for path in files.with_extension(".txt", ".names", ".labels"):
        if os.path.basename(path) in NAME_LISTS:
            with clear_errors(path, "YOLO's classes.txt"):
                # A blank line inside would shift the ids of the next classes.
                lists[path] = [class_name(x) for x in read_text(path).rstrip().splitlines()]
    if not lists:
        raise AIDError(
            f"{files.root} has no names of the classes: add classes.txt with one a line, or YOLO's "
            "data.yaml"
        )
    return same_classes(lists), splits, keypoints


def _names_in(content: dict) -> list[str]:
    """Names of the classes of a data.yaml."""
    names, number_of = content["names"], content.get("nc")
    if not isinstance(names, (dict, list)):
        raise ValueError(f"'names' is {names!r}: it must be a list")
    if isinstance(names, dict):
        if set(names) != set(range(len(names))):
            raise ValueError(f"'names' has the ids {', '.join(map(str, names))}: count from 0")
        names = [names[i] for i in range(len(names))]
    if number_of not in (None, len(names)):
        raise ValueError(f"'nc' is {number_of!r}, but 'names' has {len(names)} names")
    return list(map(class_name, names))


def _read_yaml(path: str) -> dict:
    try:
        content = yaml.safe_load(read_limited(path, io.StringIO(read_text(path))))
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from error
    return content if isinstance(content, dict) else {}


def _listed_splits(content: dict, path: str, images: Images) -> dict[str, str]:
    """{image: split} of the entries train, val and test of a data.yaml.

    Raises:
        AIDError: train or val names what does not exist or has no image, or an image is in train
            and another one.
    """
    folder = os.path.dirname(path)
    splits: dict[str, str] = {}
    # Paths start at the file, at its "path", at the folder of the images, or, in some exports, at a
    # folder beside the file.
    bases = (os.path.join(folder, str(content.get("path") or "")), folder, images.root)
    for split in SPLITS:
        entries = content.get(split) or []
        for entry in [entries] if isinstance(entries, str) else map(str, entries):
            names = (entry, entry.lstrip("./"))
            tried = [os.path.join(base, name) for name in names for base in bases]
            first, _, rest = names[1].partition("/")
            if rest and first.lower() in ROLES:  # the folder of --images may be images itself
                tried.append(os.path.join(images.root, rest))
            places = list(filter(os.path.exists, tried))
            chosen = next(filter(None, (_images_in(x, images) for x in places)), [])
            _assign(chosen, split, splits, path)
            if not chosen and split != "test":  # which exports name without delivering it
                fault = "has no image" if places else "does not exist"
                raise AIDError(
                    f"{path}: {split} names {entry}, which {fault}: correct it, or name the folder "
                    "of the images by --images"
                )
    return splits


def _splits_of_lists(files: LabelFiles, images: Images) -> dict[str, str]:
    """{image: split} of the lists train.txt, valid.txt etc., as Darknet and CVAT write them."""
    splits: dict[str, str] = {}
    for path in files.with_extension(".txt"):
        split = split_named(_stem(path))
        if split and not _has_numbers(path):
            _assign(_images_in(path, images), split, splits, path)
    return splits


def _assign(chosen: list[str], split: str, splits: dict[str, str], path: str) -> None:
    """Add images to {image: split}.

    Raises:
        AIDError: an image is in train and another split.
    """
    for image in chosen:
        of_both = {splits.setdefault(image, split), split}
        if len(of_both) == 2 and of_both != {"val", "test"}:  # often one set for both
            raise AIDError(
                f"{path}: {splits[image]} and {split} both name {image}: take it out of one, or "
                f"take out {split}"
            )


def _images_in(place: str, images: Images) -> list[str]:
    """Images in a folder, or in a text file with one path a line."""
    if os.path.isdir(place):
        inside = tuple(os.path.join(f(place), "") for f in (os.path.abspath, os.path.realpath))
        return [x for x in images.paths if any(y.startswith(inside) for y in _locations(x))]
    found = {x: images.find(x, place) for x in map(str.strip, read_text(place).splitlines()) if x}
    check_found(found, images)
    return list(found.values())


def _locations(path: str) -> tuple[str, ...]:
    """Paths of a file: as it is named, in its resolved folder, and with its last link resolved."""
    folder, name = os.path.split(path)
    in_folder = os.path.join(os.path.realpath(folder), name)
    return os.path.abspath(path), in_folder, os.path.realpath(path)


def _yolo_object(
    fields: list[str], names: list[str], keypoints: int, width: int, height: int
) -> LabeledObject:
    index, *values = map(number, fields)
    if index not in range(len(names)):
        raise ValueError(f"class {fields[0]} is not one of the {len(names)} classes, from 0")
    name = names[int(index)]
    if len(values) == 4 + keypoints:
        x, y, w, h = values[:4]
        box = (x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height
        return LabeledObject(name, box)
    if keypoints:
        raise ValueError(
            f"a line has {len(fields)} fields: with the kpt_shape of data.yaml it must have "
            f"{5 + keypoints}"
        )
    if len(values) < 6 or len(values) % 2:
        raise ValueError(
            f"a line has {len(fields)} fields: they must be class, x, y, width and height, or "
            "class and a polygon"
        )
    points = [(x * width, y * height) for x, y in zip(values[::2], values[1::2], strict=True)]
    return LabeledObject(name, around(points), polygon(points))


def is_kitti(files: LabelFiles) -> bool:
    """Whether text files are in folders called label_2."""
    return bool(_kitti_files(files))


def _kitti_files(files: LabelFiles) -> list[str]:
    texts = files.with_extension(".txt")
    return [x for x in texts if os.path.basename(os.path.dirname(os.path.abspath(x))) == "label_2"]


def read_kitti(files: LabelFiles, images: Images) -> Labels:
    """Read KITTI's labels, of KITTI's types or of others.

    Objects of KITTI's other types are crowds of the classes that they resemble, as in
    :func:`aid.data.load_kitti`; among other types, DontCare is a crowd of all classes.

    Raises:
        AIDError: a file is malformed, or images are missing.
    """
    paths = _kitti_files(files)
    found = images.of_files(files, dict.fromkeys(paths))
    lines = (x.split() for path in paths for x in read_text(path).splitlines())
    types = {x[0].lower(): x[0] for x in lines if x}
    types.pop("dontcare", None)
    of_kitti = {x.lower(): x for x in (*KITTI_CLASSES, *IGNORED_AS)}
    if types.keys() <= of_kitti.keys():
        classes, ignored_as, types = list(KITTI_CLASSES), IGNORED_AS, of_kitti
    else:
        classes = sorted(types.values())
        ignored_as, types = {"DontCare": classes}, {**types, "dontcare": "DontCare"}
    labels = Labels(classes, [])
    for path, image in found.items():
        objects = [
            LabeledObject(name, x.bbox, crowd=x.type in ignored_as)
            for x in parse_label_file(path, types=types)
            for name in ignored_as.get(x.type, (x.type,))
        ]
        # Folder training has the images of validation, too.
        split = find_split(files, images, path, image, ignored="train")
        labels.images.append(LabeledImage(image, path, objects, split))
    count_unlabeled(files, images, labels)
    apply_lists(files, images, labels)
    return labels
