"""Reading of images, with checks of what their headers say before the pixels are unpacked."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from detectron2.utils.file_io import PathManager
from PIL import Image, UnidentifiedImageError

from ..utils.errors import AIDError

__all__ = [
    "IMAGES",
    "MAX_PIXELS",
    "ImageFault",
    "check_crops",
    "check_header",
    "check_size",
    "clear_image_errors",
    "in_threads",
    "longest_side",
    "read_image",
]

# Extensions of image files.
IMAGES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
# Upper limit of width times height. Small files may hold gigabytes of pixels; from this size on
# Pillow warns of them.
MAX_PIXELS = 2**30 // 12
# JPEG and Matplotlib, which draw detections, have 16 bits for a side.
MAX_SIDE = 65_000
# Number of threads that read files, and of files that a thread reads in turn.
THREADS, CHUNK = 16, 25


class ImageFault(ValueError):
    """Reason why an image cannot be used; the message does not name the file."""


CAUSED_BY_IMAGES = (FileNotFoundError, ImageFault, detection_utils.SizeMismatchError)


def in_threads(function: Callable, items: Sequence) -> list:
    """Apply a function to many items in threads, as each file on a network drive takes a while.

    Returns:
        The results in order; an error is that of the first item that has one, as in a loop.
    """
    chunks = [items[k : k + CHUNK] for k in range(0, len(items), CHUNK)]
    with ThreadPoolExecutor(THREADS) as pool:
        results = pool.map(lambda chunk: list(map(function, chunk)), chunks)
        return [x for of_chunk in results for x in of_chunk]


def longest_side(cfg: CfgNode, is_train: bool) -> int:
    """Limit of the longer side after resizing, in pixels; 0 if images are not resized."""
    sizes = cfg.INPUT.MIN_SIZE_TRAIN if is_train else (cfg.INPUT.MIN_SIZE_TEST,)
    limit = cfg.INPUT.MAX_SIZE_TRAIN if is_train else cfg.INPUT.MAX_SIZE_TEST
    return limit if any(sizes) else 0


def check_crops(augmentations: T.AugmentationList) -> int:
    """Insert a check before each resizing that is not the first augmentation.

    A crop may leave too little of an image to be resized. The check raises an ImageFault then;
    otherwise the augmentations, and the random numbers that they draw, are as before.

    Returns:
        Limit of the longer side after the first resizing, see :func:`longest_side`.
    """
    limits, checked = [], []
    for augmentation in augmentations.augs:
        if isinstance(augmentation, T.ResizeShortestEdge) and any(augmentation.short_edge_length):
            limits.append(augmentation.max_size)
            if checked:
                checked.append(_CheckCrop(augmentation.max_size))
        checked.append(augmentation)
    augmentations.augs = checked
    return limits[0] if limits else 0


def check_header(file_name: str, longest: int = 0) -> tuple[int, int]:
    """Check an image by its header.

    Args:
        file_name: of the image.
        longest: see :func:`longest_side`.

    Returns:
        Width and height in pixels, before an EXIF rotation.

    Raises:
        FileNotFoundError: there is no such file.
        ImageFault: the header cannot be read, or the image has too many pixels, more than 8 bits
            per channel, or would lose its shorter side when it is resized.
    """
    try:
        with PathManager.open(file_name, "rb") as f, Image.open(f) as image:
            (width, height), mode = image.size, image.mode
    except FileNotFoundError:
        raise
    except Exception as error:  # of Pillow's plugins, of any type
        raise ImageFault(_one_line(error)) from error
    # Pillow would clip them to 0 to 255, to an image that is all white or all black.
    if mode[0] in "IF":
        raise ImageFault(
            f"it has 16 or 32 bits per pixel (mode {mode} of Pillow), detectors take 8: scale its "
            "values to 0 to 255"
        )
    check_size(width, height, longest)
    return width, height


def check_size(width: int, height: int, longest: int = 0) -> None:
    """Check the size of an image or a video in pixels, see :func:`check_header`."""
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise ImageFault(
            f"it has {width}x{height} pixels, the limit is {MAX_PIXELS} pixels, and {MAX_SIDE} a "
            "side: shrink or cut it"
        )
    if longest and longest * min(width, height) < max(width, height) / 2:
        raise ImageFault(
            f"it has {width}x{height} pixels, of which nothing would be left when its longer side "
            f"is resized to {longest}: cut it, or raise INPUT.MAX_SIZE_TRAIN and MAX_SIZE_TEST"
        )


def read_image(file_name: str, channels: str, longest: int = 0) -> np.ndarray:
    """Read an image as Detectron2 does, after checking its header.

    Args:
        file_name: of the image.
        channels: INPUT.FORMAT of a config.
        longest: see :func:`longest_side`.

    Returns:
        (H, W, C), uint8, rotated as its EXIF data say.

    Raises:
        FileNotFoundError, ImageFault: see :func:`check_header`; or the pixels cannot be decoded.
    """
    check_header(file_name, longest)
    try:
        return detection_utils.read_image(file_name, channels)
    except Exception as error:  # of Pillow's plugins, of any type
        raise ImageFault(_one_line(error)) from error


class _CheckCrop(T.Augmentation):
    """Check of what a crop has left of an image; changes nothing."""

    def __init__(self, longest: int):
        super().__init__()
        self.longest = longest

    def get_transform(self, image: np.ndarray) -> T.Transform:
        height, width = image.shape[:2]
        if self.longest * min(width, height) < max(width, height, 1) / 2:
            raise ImageFault(
                f"a crop has left {width}x{height} of its pixels, too few to be resized to at most "
                f"{self.longest}: raise INPUT.CROP.SIZE or INPUT.MAX_SIZE_TRAIN"
            )
        return T.NoOpTransform()


@contextmanager
def clear_image_errors(file_name: str) -> Iterator[None]:
    """Raise errors that an image has caused as an AIDError that names its file.

    Raises:
        AIDError: the image is missing, damaged or not usable. Other errors are raised as they are.
    """
    try:
        yield
    except AIDError:
        raise
    except Exception as error:  # decoders and transforms raise errors of any type
        if isinstance(error, CAUSED_BY_IMAGES) or not _is_readable(file_name):
            what_to_do = "replace the file, or take it out of the dataset"
            if isinstance(error, detection_utils.SizeMismatchError):
                what_to_do = "correct the size in the labels, or replace the file"
            raise AIDError(
                f"image {file_name} cannot be used: {_one_line(error)}: {what_to_do}"
            ) from error
        raise


def _is_readable(file_name: str) -> bool:
    try:
        read_image(file_name, "RGB")
    except (OSError, ImageFault):
        return False
    return True


def _one_line(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it is no image that Pillow can read"
    return " ".join(str(error).split()) or type(error).__name__
