"""Near-duplicates: images of two splits that look alike, such as neighboring frames of a video."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image
from tqdm import tqdm

from aid.data.images import ImageFault, check_header
from aid.utils.errors import AIDError
from aid.utils.text import counted

__all__ = ["find_pairs", "hash_images"]

# Gray values of neighboring cells of a grid are compared, one bit for each. On 120 rendered scenes
# JPEG compression, half the size, other brightness or a shift by 1 % changed at most 30 bits;
# different scenes differed in 62 or more.
GRID = 16
BITS = GRID * GRID
MOST_DIFFERENT = 30
ROWS = 512  # of the distance matrix at a time


def hash_images(paths: list[str]) -> np.ndarray:
    """Compute a difference hash of each image.

    Returns:
        (N, BITS), float32, of -1 and 1.

    Raises:
        AIDError: images cannot be decoded.
    """
    with ThreadPoolExecutor() as pool:  # Pillow decodes in parallel
        bar = tqdm(pool.map(_hash, paths), total=len(paths), desc="Images", unit="image")
        hashes = list(bar)
    broken = [f"{path} ({x})" for path, x in zip(paths, hashes, strict=True) if isinstance(x, str)]
    if broken:
        raise AIDError(
            f"{counted(len(broken), 'image')} cannot be read, first {broken[0]}: replace them"
        )
    return np.array(hashes, np.float32).reshape(-1, BITS)


def _hash(path: str) -> np.ndarray | str:
    """Hash of an image, or the reason why there is none."""
    try:
        check_header(path)
        with Image.open(path) as image:
            image.draft("L", (GRID * 8, GRID * 8))  # a JPEG is decoded at a fraction of its size
            size = (GRID + 1, GRID)
            small = image.convert("L").resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    except ImageFault as error:
        return str(error)
    except Exception as error:  # of Pillow's plugins, of any type
        return " ".join(str(error).split()) or type(error).__name__
    pixels = np.asarray(small, np.int16)
    return np.where(pixels[:, 1:] > pixels[:, :-1], 1.0, -1.0).ravel()


def find_pairs(first: np.ndarray, second: np.ndarray) -> list[tuple[int, int]]:
    """Find the nearest near-duplicate of each image.

    Args:
        first, second: hashes (N, BITS) and (M, BITS) of two splits.

    Returns:
        Pairs (index in ``first``, index in ``second``), at most one for each image of ``first``.
    """
    pairs = []
    for start in range(0, len(first) if len(second) else 0, ROWS):
        # The product of two hashes is the number of equal bits minus that of different ones.
        different = (BITS - first[start : start + ROWS] @ second.T) / 2
        nearest = different.argmin(axis=1)
        for row in np.flatnonzero(different.min(axis=1) <= MOST_DIFFERENT):
            pairs.append((start + int(row), int(nearest[row])))
    return pairs
