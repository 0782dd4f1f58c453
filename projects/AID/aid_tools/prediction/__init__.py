"""Inference with trained detectors on image and video files."""

from .sources import Source, check_names, count_frames, find_sources, read_frames
from .tool import predict
from .writers import KITTIWriter, PictureWriter

__all__ = [
    "KITTIWriter",
    "PictureWriter",
    "Source",
    "check_names",
    "count_frames",
    "find_sources",
    "predict",
    "read_frames",
]
