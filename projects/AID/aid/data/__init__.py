"""Datasets, and the training stream. Importing registers the project's datasets."""

from . import builtin
from .build import build_train_loader
from .kitti import load_kitti, parse_label_file, register_kitti

__all__ = ["build_train_loader", "builtin", "load_kitti", "parse_label_file", "register_kitti"]
