"""Annotations of COCO traffic from COCO 2017's, for datasets/prepare_coco_traffic.py."""

import json
import os
from collections import Counter

from aid.data.coco import read_coco
from aid.data.coco_traffic import CLASSES, annotation_file
from aid.utils.errors import AIDError
from aid.utils.files import whole_file
from aid.utils.text import counted

from ..files import clear_file_errors

__all__ = ["prepare", "print_summary", "select", "write_json"]

# Categories that are annotated, but do not cause an image to be kept.
NOT_TRAFFIC = ("person", "parking meter", "cat", "dog")
BATCH = 16  # images per iteration in configs/COCO-Traffic


def select(coco: dict) -> dict:
    """Reduce COCO's annotations to COCO traffic, in the order of the input.

    Category ids are renumbered from 1 to 13 in the order of CLASSES; ``coco_id`` of a category is
    its id in COCO.
    """
    by_name = {category["name"]: category for category in coco["categories"]}
    new_id = {by_name[name]["id"]: i for i, name in enumerate(CLASSES, start=1)}
    traffic = {by_name[name]["id"] for name in CLASSES if name not in NOT_TRAFFIC}
    kept = {a["image_id"] for a in coco["annotations"] if a["category_id"] in traffic}
    return {
        **{key: coco[key] for key in ("info", "licenses") if key in coco},
        "images": [image for image in coco["images"] if image["id"] in kept],
        "annotations": [
            {**a, "category_id": new_id[a["category_id"]]}
            for a in coco["annotations"]
            if a["category_id"] in new_id and a["image_id"] in kept
        ],
        "categories": [
            {**by_name[name], "id": i, "coco_id": by_name[name]["id"]}
            for i, name in enumerate(CLASSES, start=1)
        ],
    }


def write_json(path: str, content: dict) -> None:
    """Write a JSON object atomically, with one list entry per line.

    Raises:
        AIDError: the file cannot be written.
    """
    with clear_file_errors(path), whole_file(path) as f:
        for i, (key, value) in enumerate(content.items()):
            f.write(f"{',' if i else '{'}\n{json.dumps(key)}: ".encode())
            if not isinstance(value, list):
                f.write(json.dumps(value).encode())
                continue
            # Entry by entry: the largest list takes hundreds of megabytes as one string.
            f.write(b"[")
            for j, entry in enumerate(value):
                f.write(f"{',' if j else ''}\n{json.dumps(entry)}".encode())
            f.write(b"\n]")
        f.write(b"\n}\n")


def print_summary(path: str, split: str, subset: dict, num_images: int) -> None:
    """Print the number of kept images and objects, and the schedules of the training split."""
    print(f"{path}: {len(subset['images'])} of {num_images} images")
    counts = Counter((a["category_id"], bool(a["iscrowd"])) for a in subset["annotations"])
    for i, name in enumerate(CLASSES, start=1):
        print(f"  {name:13} {counts[i, False]:7} objects {counts[i, True]:5} crowd regions")
    if split != "train":
        return
    # Detectron2 trains on images with at least one object that is not a crowd region.
    num_train = len({a["image_id"] for a in subset["annotations"] if not a["iscrowd"]})
    epoch = num_train // BATCH
    print(
        f"{counted(num_train, 'image')} to train on: an epoch is {counted(epoch, 'iteration')} "
        f"of {BATCH} images"
    )
    for epochs in (12, 24):
        steps = (epochs * 2 // 3 * epoch, epochs * 11 // 12 * epoch)
        print(f"  {epochs} epochs: SOLVER.MAX_ITER {epochs * epoch} SOLVER.STEPS '{steps}'")


def prepare(root: str, split: str) -> None:
    """Write one split and print its summary.

    Raises:
        AIDError: see :func:`read_coco` and :func:`write_json`; or the file lacks a category, or has
            no image with traffic.
    """
    source = os.path.join(root, "annotations", f"instances_{split}2017.json")
    print(f"reading {source}", flush=True)
    coco = read_coco(
        source,
        "unpack the 2017 Train/Val annotations of https://cocodataset.org/#download in "
        f"{root}, or set DETECTRON2_DATASETS to the folder that holds coco/",
    )
    absent = set(CLASSES) - {category["name"] for category in coco["categories"]}
    if absent:
        raise AIDError(
            f"{source} has no category {', '.join(sorted(absent))}: use COCO 2017's annotations"
        )
    subset = select(coco)
    if not subset["images"]:
        raise AIDError(f"{source} has no annotation of traffic: use COCO 2017's annotations")
    path = annotation_file(root, split)
    print(f"writing {path}", flush=True)
    write_json(path, subset)
    print_summary(path, split, subset, len(coco["images"]))
