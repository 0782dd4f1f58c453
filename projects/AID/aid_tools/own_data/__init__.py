"""From a folder of labels in any common format to the files of a project."""

from .convert import convert, write_splits
from .data_report import describe, measure
from .formats import FORMATS, read_labels
from .project import DETECTORS, Project, write_project
from .splits import assign_splits, read_val_list

__all__ = [
    "DETECTORS",
    "FORMATS",
    "Project",
    "assign_splits",
    "convert",
    "describe",
    "measure",
    "read_labels",
    "read_val_list",
    "write_project",
    "write_splits",
]
