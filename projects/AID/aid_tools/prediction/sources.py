"""Images and frames of videos, one at a time, from whatever a user names."""

import glob
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import cv2
import numpy as np
from detectron2.data.detection_utils import read_image
from PIL import Image

from aid.utils.errors import AIDError

__all__ = ["Frame", "Source", "count_frames", "find_sources", "read_frames"]

IMAGES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")


@dataclass(frozen=True)
class Source:
    """A file that a user named.

    Attributes:
        path: of the file.
        name: of what is written about it: its path below the folder that all sources share,
            without extension.
    """

    path: str
    name: str

    @property
    def is_video(self) -> bool:
        return self.path.lower().endswith(VIDEOS)


@dataclass(frozen=True)
class Frame:
    """An image, or one of a video's.

    Attributes:
        source: that it is from.
        image: (H, W, 3), uint8, in the channel order that was asked for.
        number: of the frame in its video, from 0; 0 of an image.
        rate: frames a second of the video, 0 of an image.
    """

    source: Source
    image: np.ndarray
    number: int = 0
    rate: float = 0.0

    @property
    def name(self) -> str:
        """Of what is written about it."""
        video = self.source.is_video
        return f"{self.source.name}/{self.number:06d}" if video else self.source.name


def find_sources(inputs: list[str]) -> list[Source]:
    """The files behind what a user named, in that order; a folder's by name.

    Args:
        inputs: files, which need not be there; folders, whose images and videos at any depth are
            meant; and patterns as of a shell, with ``**`` for any depth.

    Raises:
        AIDError: a folder or pattern holds nothing, or two files would be written about under the
            same name.
    """
    paths, folders = [], []
    for given in inputs:
        if os.path.isdir(given):
            found = _files_below(given)
            folders.append(os.path.abspath(given))
        elif glob.has_magic(given) and not os.path.exists(given):
            found = sorted(x for x in glob.glob(given, recursive=True) if os.path.isfile(x))
            folders += [os.path.dirname(os.path.abspath(path)) for path in found]
        else:
            found = [given]
            folders.append(os.path.dirname(os.path.abspath(given)))
        if not found:
            raise AIDError(f"{given} holds neither an image nor a video: check the path")
        paths += found
    root = os.path.commonpath(folders)
    unique = {os.path.abspath(path): path for path in paths}
    sources = [
        Source(path, os.path.splitext(os.path.relpath(full, root))[0])
        for full, path in unique.items()
    ]
    _check_names(sources)
    return sources


def _files_below(folder: str) -> list[str]:
    found = (os.path.join(at, name) for at, _, names in os.walk(folder) for name in names)
    return sorted(path for path in found if path.lower().endswith((*IMAGES, *VIDEOS)))


def _check_names(sources: list[Source]) -> None:
    seen = {}
    videos = {source.name: source for source in sources if source.is_video}
    for source in sources:
        # A video's frames are written about in a folder of its name.
        other = videos.get(os.path.dirname(source.name), seen.setdefault(source.name, source))
        if other is not source:
            raise AIDError(
                f"{other.path} and {source.path} would be written under the same name, "
                f"{source.name}: rename one, or give them to separate calls"
            )


def count_frames(sources: list[Source]) -> int:
    """How many frames there are, as far as videos say."""
    return sum(_length(source.path) if source.is_video else 1 for source in sources)


def _length(path: str) -> int:
    with _opened(path) as video:
        return max(0, int(video.get(cv2.CAP_PROP_FRAME_COUNT)))


def read_frames(
    sources: list[Source], channels: str, skipped: Callable[[str], None]
) -> Iterator[Frame]:
    """Read frame after frame, keeping none.

    Args:
        sources: of :func:`find_sources`.
        channels: INPUT.FORMAT of a config, "BGR" or "RGB".
        skipped: is told in a line of each image, and of each video, that cannot be read or has
            frames that cannot.
    """
    for source in sources:
        if source.is_video:
            yield from _read_video(source, channels, skipped)
            continue
        try:
            yield Frame(source, read_image(source.path, channels))  # as for an evaluation
        except FileNotFoundError:
            skipped(f"{source.path}: does not exist")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            skipped(f"{source.path}: {' '.join(str(error).split())}")


def _read_video(source: Source, channels: str, skipped: Callable[[str], None]) -> Iterator[Frame]:
    with _opened(source.path) as video:
        if not video.isOpened():
            why = (
                "is no video that OpenCV reads" if os.path.exists(source.path) else "does not exist"
            )
            skipped(f"{source.path}: {why}")
            return
        length = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
        rate = video.get(cv2.CAP_PROP_FPS) or 25.0
        number, missing = 0, 0
        while True:
            is_read, image = video.read()
            if is_read:
                image = image if channels == "BGR" else image[:, :, ::-1]
                yield Frame(source, np.ascontiguousarray(image), number, rate)
            elif number < length:
                missing += 1
            else:
                break
            number += 1
        if missing or not number:
            skipped(f"{source.path}: {missing or 'all'} of {number} frames cannot be read")


@contextmanager
def _opened(path: str) -> Iterator[cv2.VideoCapture]:
    video = cv2.VideoCapture(path)
    try:
        yield video
    finally:
        video.release()
