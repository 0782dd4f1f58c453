"""Report on converted data: what is in the splits, and what makes a training or its test worse."""

import json
import os
from collections import Counter

from tabulate import tabulate

from aid.utils.text import counted

from ..text import markdown_cell, markdown_text
from .convert import Split, box_advice
from .input_size import InputSize
from .labels import Labels
from .near_duplicates import find_pairs, hash_images

__all__ = ["describe", "measure"]

# Limits of COCO's object sizes: square root of the area, in pixels; and a size below which an
# object has at most two cells of the finest level of most FPNs, of stride 8.
SMALL, MEDIUM, TINY = 32, 96, 8
# Largest number of images of a split that are searched for near-duplicates.
MAX_COMPARED = 20_000
# Share of tiny objects from which the report advises larger images.
MANY_TINY = 0.05
# Share of labels outside of their image from which they seem to be of images of another size, which
# KITTI's files do not tell.
MANY_OUTSIDE = 0.05
# Share of clipped boxes from which they seem to be in another layout, such as of two corners.
MANY_CLIPPED = 0.1
_REGIONS = (
    "The metric ignores detections there; training takes them as background, or with "
    "INPUT.IGNORE_REGIONS ignores them, too."
)
# {format: what its ignored regions are}
IGNORED_REGIONS = {
    "voc": "Ignored regions are the objects of val and test marked as difficult, which the metric "
    "ignores; those of train are trained on.",
    "coco": f"Ignored regions are the annotations with iscrowd. {_REGIONS}",
    "kitti": "Ignored regions are the DontCare regions and, among KITTI's own types, the objects "
    f"of other types than Car, Pedestrian and Cyclist. {_REGIONS}",
}


def measure(labels: Labels, splits: dict[str, Split], how_split: str) -> dict:
    """Measure the data.

    Args:
        labels: labels as they were read.
        splits: splits as they will be written.
        how_split: description of the split.

    Returns:
        Content of data_report.json.

    Raises:
        AIDError: the pixels of an image cannot be decoded.
    """
    train = splits["train"].coco["images"]
    size = InputSize([(x["width"], x["height"]) for x in train])
    names = Counter(os.path.basename(path) for split in splits.values() for path in split.paths)
    return {
        "format": labels.format,
        "classes": labels.classes,
        "split": how_split,
        "input_size": {"MIN_SIZE_TEST": size.min_test, "MAX_SIZE_TEST": size.longest},
        "splits": {name: _measure_split(split, size) for name, split in splits.items()},
        "left_out": dict(labels.left_out),
        "taken_as_empty": labels.taken_as_empty,
        "elsewhere": {
            "number": len(labels.elsewhere),
            "first": next(iter(labels.elsewhere.items()), None),
        },
        "equal_names": sorted(name for name, number in names.items() if number > 1),
        **_near_duplicates(splits),
    }


def _measure_split(split: Split, size: InputSize) -> dict:
    images = {x["id"]: x for x in split.coco["images"]}
    names = {x["id"]: x["name"] for x in split.coco["categories"]}
    objects = [x for x in split.coco["annotations"] if not x["iscrowd"]]
    # A region of several classes has an annotation for each.
    regions = {(x["image_id"], *x["bbox"]) for x in split.coco["annotations"] if x["iscrowd"]}
    counts = Counter(x["category_id"] for x in objects)
    scales = {k: size.scale(x["width"], x["height"]) for k, x in images.items()}
    sides = [scales[x["image_id"]] * (x["bbox"][2] * x["bbox"][3]) ** 0.5 for x in objects]
    return {
        "images": len(images),
        "images_without_objects": len(images) - len({x["image_id"] for x in objects}),
        "objects": len(objects),
        "ignored_regions": len(regions),
        "objects_by_class": {name: counts[k] for k, name in names.items()},
        "small": sum(x < SMALL for x in sides),
        "medium": sum(SMALL <= x < MEDIUM for x in sides),
        "large": sum(x >= MEDIUM for x in sides),
        "tiny": sum(x < TINY for x in sides),
        **{k: split.repairs[k] for k in ("clipped", "without area", "outside")},
    }


def _near_duplicates(splits: dict[str, Split]) -> dict:
    """Pairs of near-duplicates in different splits, and the numbers of compared images."""
    compared = {k: x.paths[:: -(-len(x.paths) // MAX_COMPARED)] for k, x in splits.items()}
    hashes = {name: hash_images(paths) for name, paths in compared.items()}
    pairs = [
        {first: compared[first][i], second: compared[second][j]}
        for first, second in (("val", "train"), ("test", "train"), ("test", "val"))
        if first in splits and second in splits
        for i, j in find_pairs(hashes[first], hashes[second])
    ]
    return {"near_duplicates": pairs, "compared": {k: len(x) for k, x in compared.items()}}


def describe(content: dict) -> str:
    """Write the report as Markdown.

    Args:
        content: result of :func:`measure`.
    """
    splits, size = content["splits"], content["input_size"]
    columns = ("images", "images_without_objects", "objects", "ignored_regions")
    columns += ("clipped", "without area", "outside")
    sizes = ("small", "medium", "large", "tiny")
    header = ["split", "images", "without objects", "objects", "ignored regions"]
    header += ["boxes clipped", "without area", "outside"]
    size_header = ["split", f"< {SMALL} px", f"{SMALL} to {MEDIUM} px", f">= {MEDIUM} px"]
    by_class = [
        [markdown_cell(name), *(x["objects_by_class"][name] for x in splits.values())]
        for name in content["classes"]
    ]
    parts = [
        "# Data",
        f"Format: {content['format']}. {counted(len(content['classes']), 'class')}. Split: "
        f"{markdown_text(content['split'])}.",
        _table(header, [[name, *(x[k] for k in columns)] for name, x in splits.items()]),
        "Boxes that leave their image were clipped; those without area, or outside of their image, "
        f"were left out. {IGNORED_REGIONS.get(content['format'], '')}".rstrip(),
        "## Objects of each class",
        _table(["class", *splits], by_class),
        "## Sizes of the objects",
        f"At the net's input, with INPUT.MIN_SIZE_TEST {size['MIN_SIZE_TEST']} and MAX_SIZE_TEST "
        f"{size['MAX_SIZE_TEST']}; the size is the square root of the area.",
        _table(
            [*size_header, f"< {TINY} px"],
            [[name, *(x[k] for k in sizes)] for name, x in splits.items()],
        ),
        "## Notes",
        "\n".join(f"* {markdown_text(x)}" for x in _notes(content)) or "None.",
    ]
    return "\n\n".join(parts) + "\n"


def _table(header: list[str], rows: list[list]) -> str:
    return tabulate(rows, header, tablefmt="github", disable_numparse=[0])


def _notes(content: dict) -> list[str]:
    splits, pairs = content["splits"], content["near_duplicates"]
    notes = [f"Not read: {what}: {number}." for what, number in content["left_out"].items()]
    if number := content["taken_as_empty"]:
        notes.append(
            f"{counted(number, 'image')} without a label file: used as images without objects."
        )
    if number := content["elsewhere"]["number"]:
        name, path = content["elsewhere"]["first"]
        notes.append(
            f"{counted(number, 'image')} found by the file name alone, in another folder than the "
            f"labels say (first {name}: {path}): check that they belong together."
        )
    folded = Counter(map(str.casefold, content["classes"]))
    alike = [name for name in content["classes"] if folded[name.casefold()] > 1]
    if alike:
        notes.append(
            f"Classes that differ in upper and lower case only: {', '.join(alike)}: if they are "
            "one class, correct their labels."
        )
    for name in set(splits) & {"val", "test"}:
        lost = splits[name]["without area"] + splits[name]["outside"]
        if lost:
            notes.append(
                f"{counted(lost, 'label')} of {name} without area or outside of the image: no "
                "detector can find such objects. They are left out: correct or remove them."
            )
    for name, split in splits.items():
        labels = sum(split[k] for k in ("objects", "ignored_regions", "without area", "outside"))
        if split["outside"] > MANY_OUTSIDE * labels:
            notes.append(
                f"{split['outside']} of {counted(labels, 'label')} of {name} are outside of their "
                f"image: {box_advice(content['format'])}."
            )
        if split["clipped"] > MANY_CLIPPED * labels:
            notes.append(
                f"{split['clipped']} of {counted(labels, 'label')} of {name} leave their image and "
                f"were clipped: {box_advice(content['format'])}."
            )
        absent = [k for k, number in split["objects_by_class"].items() if not number]
        if absent:
            effect = "cannot be learned" if name == "train" else "have no AP"
            is_drawn = content["split"].startswith("drawn")
            others = [splits[x]["objects_by_class"] for x in ("train", "val")]
            drawable = [k for k in absent if is_drawn and any(x[k] for x in others)]
            advice = f"; another --seed may draw {', '.join(drawable)}" if drawable else ""
            names = ", ".join(absent)
            notes.append(f"Without objects in {name}, so that they {effect}: {names}{advice}.")
        if split["tiny"] > MANY_TINY * split["objects"]:
            notes.append(
                f"{split['tiny'] / split['objects']:.0%} of the objects of {name} are smaller than "
                f"{TINY} px at the net's input: raise INPUT.MIN_SIZE_TRAIN and MIN_SIZE_TEST."
            )
    if splits["train"]["images_without_objects"]:
        number = splits["train"]["images_without_objects"]
        notes.append(f"Training skips {counted(number, 'image')} without objects.")
    if pairs:
        first = " and ".join(map(json.dumps, pairs[0].values()))
        notes.append(
            f"{counted(len(pairs), 'image')} with a near-duplicate in another split, first "
            f"{first}; all are in data_report.json. Results on them are better than on new images: "
            "keep the frames of a video in one split, by --whole-folders or --val-list."
        )
    for name, number in content["compared"].items():
        if number < splits[name]["images"]:
            notes.append(f"Only {number} images of {name} were compared with other splits.")
    if content["equal_names"]:
        number, first = len(content["equal_names"]), content["equal_names"][0]
        notes.append(f"{counted(number, 'file name')} of images in several folders, first {first}.")
    return notes
