"""Images without labels: folders as datasets, and their share in the batches of a training."""

import math
import os

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from ..utils.errors import AIDError
from ..utils.files import files_below
from ..utils.text import counted
from .images import IMAGES, ImageFault, check_header, in_threads

__all__ = [
    "load_images",
    "num_unlabeled",
    "register_images",
    "unlabeled_records",
    "upright_size",
]

# EXIF orientations with the sides swapped, in which Detectron2 reads an image upright.
ORIENTATION_TAG, SWAPPED = 0x0112, (5, 6, 7, 8)


def register_images(name: str, folder: str) -> None:
    """Register all images in a folder and its subfolders under ``name``, for DATASETS.UNLABELED.

    The folder is read on first use only.

    Args:
        name: in Detectron2's catalogs.
        folder: see :func:`load_images`.
    """
    DatasetCatalog.register(name, lambda: load_images(folder))
    MetadataCatalog.get(name).set(image_root=folder)


def load_images(folder: str) -> list[dict]:
    """List the images of a folder in Detectron2's standard format, without annotations.

    Args:
        folder: searched with its subfolders for files with the extension of an image, see
            :func:`~aid.utils.files.files_below`.

    Raises:
        AIDError: the folder does not exist or has no image, or the header of an image shows that
            it cannot be used.
    """
    if not os.path.isdir(folder):
        raise AIDError(f"image folder {folder} does not exist: check the path")
    paths = [x for x in files_below(folder) if x.lower().endswith(IMAGES)]
    if not paths:
        raise AIDError(f"image folder {folder} has no file with extension {', '.join(IMAGES)}")
    sizes = in_threads(upright_size, paths)
    return [
        {"file_name": path, "image_id": number, "height": height, "width": width}
        for number, (path, (width, height)) in enumerate(zip(paths, sizes, strict=True))
    ]


def upright_size(path: str) -> tuple[int, int]:
    """Width and height of an image as Detectron2 reads it, after its EXIF or XMP rotation."""
    try:
        width, height = check_header(path)
        with Image.open(path) as image:
            orientation = _orientation(image)
    except (OSError, ImageFault) as error:
        raise AIDError(f"image {path} cannot be read: {error}: replace or remove it") from error
    return (height, width) if orientation in SWAPPED else (width, height)


def _orientation(image: Image.Image) -> int | None:
    """Orientation by which Detectron2 rotates an image; None without any, or if EXIF is damaged."""
    try:
        # The method of PNG, which looks behind the pixels, too, would decode all of them.
        return Image.Image.getexif(image).get(ORIENTATION_TAG)
    except Exception:  # Pillow raises errors of any type for damaged EXIF data
        return None


def num_unlabeled(cfg: CfgNode, batch_size: int) -> int:
    """Compute the number of unlabeled images in each batch of a process.

    Args:
        cfg: the config, with DATASETS.UNLABELED and UNLABELED.SHARE.
        batch_size: number of images per forward pass of one process.

    Returns:
        The share of the batch, rounded to the nearest number and halves up; 0 without DATASETS.

    Raises:
        AIDError: datasets without a share or a share without datasets, a share outside of [0, 1),
            or the batch would have no labeled or no unlabeled image.
    """
    datasets, share = tuple(cfg.DATASETS.UNLABELED), cfg.UNLABELED.SHARE
    if not 0 <= share < 1:
        raise AIDError(f"UNLABELED.SHARE is {share}: it must be 0 (off) or a share below 1")
    if bool(datasets) != (share > 0):
        raise AIDError(
            f"UNLABELED.SHARE is {share} and DATASETS.UNLABELED names "
            f"{counted(len(datasets), 'dataset')}: set both, to train with images without "
            "labels, or none of them"
        )
    number = math.floor(share * batch_size + 0.5)
    if datasets and not 0 < number < batch_size:
        raise AIDError(
            f"UNLABELED.SHARE is {share}: of the {counted(batch_size, 'image')} of a forward pass "
            f"{number} would be unlabeled; at least one has to be, and one has to have labels: "
            "change the share, or raise SOLVER.IMS_PER_BATCH"
        )
    return number


def unlabeled_records(cfg: CfgNode) -> list[dict]:
    """List the images of DATASETS.UNLABELED, without their annotations.

    Returns:
        Records in Detectron2's standard format, with the additional key ``unlabeled``.
    """
    keys = ("file_name", "image_id", "height", "width")
    records = [x for name in cfg.DATASETS.UNLABELED for x in DatasetCatalog.get(name)]
    return [
        {**{k: x[k] for k in keys if k in x}, "annotations": [], "unlabeled": True} for x in records
    ]
