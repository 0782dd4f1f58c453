"""Comparison of the detections of an exported file and its detector.

Shape letters: D detections of an image, (H, W) size of an image, M side of a mask.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aid.utils.errors import AIDError

__all__ = ["TOLERANCE", "Difference", "compare_detections"]

# Largest differences attributed to rounding: boxes in pixels, scores, mask probabilities.
TOLERANCE = {"boxes": 0.1, "scores": 1e-3, "masks": 1e-2}
# Scales at which each image is compared; 0.75 tests sizes other than that of the export.
SCALES = (1.0, 0.75)

Detections = tuple[Tensor, ...]


@dataclass(frozen=True)
class Difference:
    """Differences between an exported file and its detector.

    Attributes:
        largest: largest difference by output: "boxes" in pixels, "scores", and "masks" if there
            are any.
        detections: number of compared detections.
    """

    largest: dict[str, float]
    detections: int


@torch.no_grad()
def compare_detections(
    run: Callable[[Tensor], Detections], detector: nn.Module, images: list[Tensor], path: str
) -> Difference:
    """Compare the detections of a file and its detector on images of several sizes.

    Args:
        run: function of the file, see :func:`~aid_tools.export.formats.load_exported`.
        detector: detector in eval mode, on the CPU.
        images: inputs of the file, (3, H, W) each.
        path: path of the file, for error messages.

    Raises:
        AIDError: the detections differ by more than :data:`TOLERANCE`, or there are none.
    """
    largest, detections = {}, 0
    for image in (_scaled(image, scale) for image in images for scale in SCALES):
        expected = _of_detector(detector, image)
        actual = run(image)
        where = f"on an image of {image.shape[1]}x{image.shape[2]}"
        if len(actual[0]) != len(expected[0]):
            raise AIDError(
                f"{path} is not used: {where} it detects {len(actual[0])} objects, the detector "
                f"{len(expected[0])}; choose another format"
            )
        for name, value in _differences(actual, expected).items():
            largest[name] = max(largest.get(name, 0.0), value)
            if not value <= TOLERANCE[name]:
                raise AIDError(
                    f"{path} is not used: {where} its {name} differ from the detector's by "
                    f"{value:.2g}, more than {TOLERANCE[name]:g}; choose another format"
                )
        detections += len(expected[0])
    if not detections:
        raise AIDError(
            "the detector finds nothing on the images of the comparison, so that no exported file "
            "can be compared: choose other images with --images"
        )
    return Difference(largest, detections)


def _scaled(image: Tensor, scale: float) -> Tensor:
    if scale == 1:
        return image
    return torch.nn.functional.interpolate(image[None], scale_factor=scale, mode="bilinear")[0]


def _of_detector(detector: nn.Module, image: Tensor) -> Detections:
    """Detections of the detector's ``forward``, with masks (D, 1, M, M) within the boxes."""
    (output,) = detector([{"image": image}])
    instances = output["instances"]
    boxes = (instances.pred_boxes.tensor, instances.scores, instances.pred_classes)
    if not instances.has("pred_masks"):
        return boxes
    (raw,) = detector.inference([{"image": image}], do_postprocess=False)
    return (*boxes, raw.pred_masks[raw.pred_boxes.nonempty()])


def _differences(actual: Detections, expected: Detections) -> dict[str, float]:
    """Largest differences of boxes, scores and masks over matched detections.

    Each expected detection is matched to the nearest box of its class, because the order of
    detections with almost equal scores is arbitrary.
    """
    names = ("boxes", "scores", "masks")[: len(expected) - 1]
    if not len(expected[0]):
        return dict.fromkeys(names, 0.0)
    between = (expected[0][:, None] - actual[0][None]).abs().amax(dim=2)
    between[expected[2][:, None] != actual[2][None]] = torch.inf
    # Boxes clipped at the image border can be identical; the scores distinguish them.
    rest = between + (expected[1][:, None] - actual[1][None]).abs()
    nearest = []
    for row in range(len(rest)):
        nearest.append(int(rest[row].argmin()))
        rest[:, nearest[-1]] = torch.inf
    largest = [between[range(len(nearest)), nearest].max()]
    for a, b in zip((actual[1], *actual[3:]), (expected[1], *expected[3:]), strict=True):
        largest.append((a[nearest] - b).abs().max())
    return dict(zip(names, map(float, largest), strict=True))
