"""Datasets and data loaders. Importing the package registers the project's datasets."""

from . import builtin
from .build import build_test_loader, build_train_loader
from .catalog import datasets_loaded_once
from .coco import load_coco, read_coco, register_coco
from .coco_traffic import register_coco_traffic
from .kitti import load_kitti, parse_label_file, register_kitti, register_kitti_test
from .register import register_from_file
from .unlabeled import load_images, register_images

__all__ = [
    "build_test_loader",
    "build_train_loader",
    "builtin",
    "datasets_loaded_once",
    "load_coco",
    "load_images",
    "load_kitti",
    "parse_label_file",
    "read_coco",
    "register_coco",
    "register_coco_traffic",
    "register_from_file",
    "register_images",
    "register_kitti",
    "register_kitti_test",
]
