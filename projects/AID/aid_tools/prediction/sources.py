"""Reading of images and video frames, one at a time, from files, folders and patterns."""

import glob
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import cv2
import numpy as np

from aid.data.images import IMAGES, ImageFault, check_size, read_image
from aid.utils.errors import AIDError
from aid.utils.files import files_below

__all__ = ["Frame", "Source", "count_frames", "find_sources", "read_frames"]

VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
# Number of unreadable frames in a row after which a video is not read on.
MAX_UNREADABLE = 1000


@dataclass(frozen=True)
class Source:
    """Input image or video.

    Attributes:
        path: path of the file.
        name: base name of its output files: the path relative to the common folder of all sources,
            without extension.
    """

    path: str
    name: str

    @property
    def is_video(self) -> bool:
        return self.path.lower().endswith(VIDEOS)


@dataclass(frozen=True)
class Frame:
    """Image, or frame of a video.

    Attributes:
        source: source of the frame.
        image: (H, W, 3), BGR, uint8.
        number: index of the frame in its video, from 0; 0 for an image.
        rate: frames per second of the video; 0 for an image.
    """

    source: Source
    image: np.ndarray
    number: int = 0
    rate: float = 0.0

    @property
    def name(self) -> str:
        """Base name of the output files of this frame."""
        video = self.source.is_video
        return f"{self.source.name}/{self.number:06d}" if video else self.source.name


def find_sources(inputs: list[str]) -> list[Source]:
    """List the image and video files that the inputs denote.

    The result is in the order of the inputs; files of a folder or pattern are sorted by name.

    Args:
        inputs: files, which may be missing; folders, searched recursively for images and videos;
            and shell patterns, with ``**`` for any depth.

    Raises:
        AIDError: a folder or pattern matches no file.
    """
    paths, folders = [], []
    for item in inputs:
        if os.path.isdir(item):
            suffixes = (*IMAGES, *VIDEOS)
            files = [x for x in files_below(item) if x.lower().endswith(suffixes)]
            folders.append(os.path.abspath(item))
        elif glob.has_magic(item) and not os.path.exists(item):
            files = sorted(x for x in glob.glob(item, recursive=True) if os.path.isfile(x))
            folders += [os.path.dirname(os.path.abspath(path)) for path in files]
        else:
            files = [item]
            folders.append(os.path.dirname(os.path.abspath(item)))
        if not files:
            raise AIDError(f"{item} holds neither an image nor a video: check the path")
        paths += files
    root = os.path.commonpath(folders)
    unique = {os.path.abspath(path): path for path in paths}
    sources = [
        Source(path, os.path.splitext(os.path.relpath(full, root))[0])
        for full, path in unique.items()
    ]
    return sources


def check_names(sources: list[Source]) -> None:
    """Check that no two files would have the same output name.

    Raises:
        AIDError: two would.
    """
    seen: dict[str, Source] = {}
    videos = {source.name: source for source in sources if source.is_video}
    for source in sources:
        # The outputs of a video's frames are in a folder with the name of the video.
        other = videos.get(os.path.dirname(source.name), seen.setdefault(source.name, source))
        if other is not source:
            raise AIDError(
                f"{other.path} and {source.path} would be written under the same name, "
                f"{source.name}: rename one, or use separate calls"
            )


def count_frames(sources: list[Source]) -> int:
    """Number of frames, by the frame counts in the headers of the videos."""
    return sum(_length(x.path) if x.is_video and _is_utf8(x.path) else 1 for x in sources)


def _is_utf8(path: str) -> bool:
    """Whether OpenCV can be given a path; with another one the process crashes."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _length(path: str) -> int:
    with _opened(path) as video:
        return max(0, int(video.get(cv2.CAP_PROP_FRAME_COUNT)))


def read_frames(
    sources: list[Source], skipped: Callable[[str], None], longest: int = 0
) -> Iterator[Frame]:
    """Read the frames of all sources one by one.

    Args:
        sources: result of :func:`find_sources`.
        skipped: callback for a one-line message about each image that cannot be used, and each
            video that cannot be used or has unreadable frames.
        longest: see :func:`~aid.data.images.longest_side`.
    """
    for source in sources:
        if not _is_utf8(source.path):
            skipped(f"{source.path}: its name is not UTF-8: rename the file")
            continue
        if source.is_video:
            yield from _read_video(source, skipped, longest)
            continue
        try:
            yield Frame(source, read_image(source.path, "BGR", longest))
        except FileNotFoundError:
            skipped(f"{source.path}: does not exist")
        except ImageFault as error:
            skipped(f"{source.path}: {error}")


def _read_video(source: Source, skipped: Callable[[str], None], longest: int) -> Iterator[Frame]:
    with _opened(source.path) as video:
        if not video.isOpened():
            exists = os.path.exists(source.path)
            reason = "is no video that OpenCV can read" if exists else "does not exist"
            skipped(f"{source.path}: {reason}")
            return
        size = (video.get(key) for key in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        try:
            check_size(*map(int, size), longest)
        except ImageFault as error:
            skipped(f"{source.path}: {error}")
            return
        length = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
        rate = video.get(cv2.CAP_PROP_FPS) or 25.0
        number, missing, in_a_row = 0, 0, 0
        while True:
            is_read, image = video.read()
            if is_read:
                yield Frame(source, image, number, rate)
                in_a_row = 0
            # The length alone is no limit: it is what the header of the file claims.
            elif number < length and in_a_row < MAX_UNREADABLE:
                missing, in_a_row = missing + 1, in_a_row + 1
            else:
                break
            number += 1
        missing, number = missing + max(0, length - number), max(number, length)
        if missing or not number:
            skipped(f"{source.path}: {missing or 'all'} of {number} frames cannot be read")


@contextmanager
def _opened(path: str) -> Iterator[cv2.VideoCapture]:
    video = cv2.VideoCapture(os.path.join(".", path))  # "a:b" alone would be a URL for FFmpeg
    try:
        yield video
    finally:
        video.release()
