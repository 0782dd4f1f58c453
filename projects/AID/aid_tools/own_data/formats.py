"""Label formats: recognition and reading.

The readers are written here, since none of the libraries that were looked at serves: datumaro 1.13
needs older versions of Pillow and OpenCV than requirements.txt has, pandas and pyarrow; supervision
0.31 needs scipy and PyAV, and reads neither CVAT, KITTI nor the difficult flags of Pascal VOC;
globox 2.9 drops crowds, difficult flags and masks, and its errors name no file.
"""

import os
from collections.abc import Callable

from aid.utils.errors import AIDError
from aid.utils.text import counted

from .files import Images, LabelFiles
from .json_formats import is_coco, is_labelme, read_coco, read_labelme
from .labels import LabeledImage, LabeledObject, Labels
from .text_formats import is_kitti, is_yolo, read_kitti, read_yolo
from .xml_formats import is_cvat, is_voc, read_cvat, read_voc

__all__ = ["FORMATS", "read_labels"]

# {name of a format: (whether label files have it, its reader)}
FORMATS: dict[str, tuple[Callable[[LabelFiles], bool], Callable[[LabelFiles, Images], Labels]]] = {
    "voc": (is_voc, read_voc),
    "yolo": (is_yolo, read_yolo),
    "cvat": (is_cvat, read_cvat),
    "labelme": (is_labelme, read_labelme),
    "coco": (is_coco, read_coco),
    "kitti": (is_kitti, read_kitti),
}


def read_labels(path: str, image_root: str = "", name: str = "") -> Labels:
    """Read the labels of a folder. Classes without any object are left out.

    Args:
        path: folder of labels, or a label file.
        image_root: folder of the images; empty if they are below the folder of labels.
        name: of the format, one of FORMATS; empty to recognize it.

    Raises:
        AIDError: the format is not recognized, a label file is malformed, labels have no image, an
            image has two label files, two lists of classes differ, or there is no object.
    """
    files = LabelFiles(path)
    name = name or _recognize(files, path)
    images = Images.in_folder(image_root or files.root)
    labels = FORMATS[name][1](files, images)
    if not labels.images:
        raise AIDError(f"no {name} labels in {path}: name another folder or --format")
    _check_files(labels.images)
    _leave_out_repeated(labels)
    used = {x.name for image in labels.images for x in image.objects}
    if not used:
        raise AIDError(f"{path} has no labeled object in {counted(len(labels.images), 'image')}")
    unused = [x for x in labels.classes if x not in used]
    if unused:
        labels.left_out[f"classes without any object ({', '.join(unused)})"] = len(unused)
    labels.classes = [x for x in labels.classes if x in used]
    labels.format, labels.elsewhere = name, images.elsewhere
    return labels


def _check_files(images: list[LabeledImage]) -> None:
    """Check that no two images are one file, for which links count as their targets."""
    by_file: dict[str, LabeledImage] = {}
    for image in images:
        first = by_file.setdefault(os.path.realpath(image.path), image)
        if first is image:
            continue
        for x in (first, image):
            if x.source == x.path:
                raise AIDError(
                    f"images {first.path} and {image.path} are one file, and {x.path} has no label "
                    "file: remove it"
                )
        raise AIDError(
            f"image {image.path} is labeled twice, by {first.source} and {image.source}: remove one"
        )


def _leave_out_repeated(labels: Labels) -> None:
    """Leave out, and count, objects with the class and box of another one of their image.

    Regions to ignore stay, which may be those of several types of objects.
    """
    for image in labels.images:
        unique: dict[tuple, LabeledObject] = {}
        for index, x in enumerate(image.objects):
            unique.setdefault((x.name, x.box, x.difficult, index if x.crowd else None), x)
        if repeated := len(image.objects) - len(unique):
            labels.left_out["labels that repeat one of the same class and box"] += repeated
            image.objects = list(unique.values())


def _recognize(files: LabelFiles, path: str) -> str:
    found = [name for name, (is_format, _) in FORMATS.items() if is_format(files)]
    if len(found) > 1:
        raise AIDError(f"{path} has labels of {' and '.join(found)}: choose one by --format")
    if not found:
        raise AIDError(
            f"{path} has no labels of a known format ({', '.join(FORMATS)}): its files have the "
            f"extensions {', '.join(files.extensions()) or '(none)'}; name another folder, or the "
            "format by --format"
        )
    return found[0]
