"""The datasets that a config can name without more: registered when the package is imported."""

import os

from .kitti import register_kitti

__all__ = ["datasets_root", "register_all"]

_HOW_TO_GET = {
    "kitti": "unpack the left color images and the training labels of KITTI's 2D object benchmark "
    "there, or set DETECTRON2_DATASETS to the folder that holds kitti/; see datasets/README.md",
    "synthetic_kitti": "render the scenes with `python datasets/make_synthetic_kitti.py`",
}


def datasets_root() -> str:
    """The folder below which datasets are looked for: $DETECTRON2_DATASETS, or "datasets"."""
    return os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))


def register_all(root: str) -> None:
    """Register train, val and trainval of KITTI and of the rendered scenes below ``root``."""
    for prefix, how_to_get in _HOW_TO_GET.items():
        for split in ("train", "val", "trainval"):
            register_kitti(f"{prefix}_{split}", os.path.join(root, prefix), split, how_to_get)


register_all(datasets_root())
