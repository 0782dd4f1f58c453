"""From a folder of labels in any common format to data that the project reads."""

from .convert import convert, write_splits
from .data_report import describe, measure
from .formats import FORMATS, read_labels
from .splits import assign_splits, read_val_list

__all__ = [
    "FORMATS",
    "assign_splits",
    "convert",
    "describe",
    "measure",
    "read_labels",
    "read_val_list",
    "write_splits",
]
