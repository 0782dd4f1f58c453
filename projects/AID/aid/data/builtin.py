"""Built-in datasets, registered on import."""

import os

from ..utils.commands import script_path
from .coco_traffic import SPLITS, register_coco_traffic
from .kitti import register_kitti, register_kitti_test

__all__ = ["datasets_root", "register_all"]

_HOW_TO_GET = {
    "kitti": "unpack the left color images and the training labels of KITTI's 2D object benchmark "
    "there, or set DETECTRON2_DATASETS to the folder that holds kitti/; see datasets/README.md",
    "synthetic_kitti": "render the scenes with "
    f"`python {script_path('datasets/make_synthetic_kitti.py')}`",
}


def datasets_root() -> str:
    """Root folder of all datasets: $DETECTRON2_DATASETS, by default "datasets"."""
    return os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))


def register_all(root: str) -> None:
    """Register KITTI, synthetic KITTI (rendered scenes) and COCO traffic below ``root``."""
    for prefix, how_to_get in _HOW_TO_GET.items():
        for split in ("train", "val", "trainval"):
            register_kitti(f"{prefix}_{split}", os.path.join(root, prefix), split, how_to_get)
    register_kitti_test("kitti_test", os.path.join(root, "kitti"), _HOW_TO_GET["kitti"])
    for split in SPLITS:
        register_coco_traffic(f"coco_traffic_2017_{split}", os.path.join(root, "coco"), split)


register_all(datasets_root())
