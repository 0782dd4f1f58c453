"""Size of the images at the net's input, chosen from the sizes of the image files."""

from statistics import median

from detectron2.data.transforms import ResizeShortestEdge

__all__ = ["InputSize"]

# Detectron2's sizes of COCO; and the shorter side to which smaller images are enlarged, at most to
# twice their size.
LARGEST, LONGEST, SMALLEST = 800, 1333, 480
STEP = 32


class InputSize:
    """Sizes of INPUT for images of given sizes.

    Attributes:
        min_test: MIN_SIZE_TEST: the median shorter side, at most 800; a side below 480 is doubled,
            up to 480.
        min_train: MIN_SIZE_TRAIN: from 0.8 of it, in steps of 32.
        longest: MAX_SIZE_TRAIN and MAX_SIZE_TEST: 1333, or the longer side of the median image at
            ``min_test`` if that is more and the image more than twice as long as wide.
    """

    def __init__(self, sizes: list[tuple[int, int]]):
        """
        Args:
            sizes: width and height of the images.
        """
        shorter, longer = (median(f(size) for size in sizes) for f in (min, max))
        enlarged = min(2 * shorter, SMALLEST)
        self.min_test = max(_rounded(min(max(shorter, enlarged), LARGEST)), STEP)
        self.min_train = tuple(
            range(max(_rounded(0.8 * self.min_test), STEP), self.min_test + 1, STEP)
        )
        # Images of 16:9 are a little wider than the limit of COCO, which is kept for them.
        wide = longer / shorter > 2
        self.longest = max(LONGEST, _rounded(self.min_test * longer / shorter) if wide else 0)

    def scale(self, width: int, height: int) -> float:
        """Factor by which an image is resized for testing."""
        shape = ResizeShortestEdge.get_output_shape(height, width, self.min_test, self.longest)
        return shape[0] / height


def _rounded(side: float) -> int:
    return round(side / STEP) * STEP
