"""Inference with trained detectors on image and video files."""

from .detector import classes_of, load_config_of, load_detector
from .predict import as_input, predict
from .sources import Frame, Source, count_frames, find_sources, read_frames
from .writers import COCOWriter, KITTIWriter, PictureWriter

__all__ = [
    "COCOWriter",
    "Frame",
    "KITTIWriter",
    "PictureWriter",
    "Source",
    "as_input",
    "classes_of",
    "count_frames",
    "find_sources",
    "load_config_of",
    "load_detector",
    "predict",
    "read_frames",
]
