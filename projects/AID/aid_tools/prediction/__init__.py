"""Inference with trained detectors on image and video files."""

from .predict import predict
from .sources import Frame, Source, count_frames, find_sources, read_frames
from .writers import COCOWriter, KITTIWriter, PictureWriter

__all__ = [
    "COCOWriter",
    "Frame",
    "KITTIWriter",
    "PictureWriter",
    "Source",
    "count_frames",
    "find_sources",
    "predict",
    "read_frames",
]
