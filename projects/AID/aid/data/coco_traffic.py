"""COCO traffic: the images of COCO 2017 that show traffic, and 13 of the 80 categories.

This is the subset in the AID paper (arXiv 2201.11097).

Layout of the root folder, as of COCO itself::

    train2017/000000000009.jpg
    annotations/instances_traffic_train2017.json    written by datasets/prepare_coco_traffic.py
"""

import os

from detectron2.data import MetadataCatalog

from ..utils.commands import script_path
from .coco import register_coco

__all__ = ["CLASSES", "SPLITS", "annotation_file", "register_coco_traffic"]

# In the order of their category ids, which start at 1 in the file and at 0 in Detectron2.
CLASSES = (
    "person",
    "bicycle",
    "car",
    "motorcycle",
    "bus",
    "train",
    "truck",
    "traffic light",
    "fire hydrant",
    "stop sign",
    "parking meter",
    "cat",
    "dog",
)
SPLITS = ("train", "val")


def annotation_file(root: str, split: str) -> str:
    """Path of the annotations of a split ("train" or "val") below COCO's root folder."""
    return os.path.join(root, "annotations", f"instances_traffic_{split}2017.json")


def register_coco_traffic(name: str, root: str, split: str) -> None:
    """Register a split under ``name``. Its files are read on first use only.

    Args:
        name: in Detectron2's catalogs.
        root: COCO's folder, which contains ``train2017`` and ``annotations``.
        split: "train" or "val".
    """
    script = script_path("datasets/prepare_coco_traffic.py")
    register_coco(
        name,
        annotation_file(root, split),
        os.path.join(root, f"{split}2017"),
        f"unpack COCO's {split}2017.zip and annotations in {root}, then run `python "
        f"{script} --root {root} --split {split}`; see datasets/README.md",
        CLASSES,
    )
    # Known without the file, so that the detections of a trained detector have these ids anywhere.
    ids = {k + 1: k for k in range(len(CLASSES))}
    MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id = ids
