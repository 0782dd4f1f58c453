"""Whether an exported file finds what its detector finds."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aid.utils.errors import AIDError

__all__ = ["TOLERANCE", "Difference", "compare_detections"]

# The largest difference that is taken for rounding: of boxes in pixels, of scores, of masks'
# probabilities.
TOLERANCE = {"boxes": 0.1, "scores": 1e-3, "masks": 1e-2}
# Of the images, each of which is also looked at in another size than that of the export.
SCALES = (1.0, 0.75)

Detections = tuple[Tensor, ...]


@dataclass(frozen=True)
class Difference:
    """The largest ones found, and in how many detections.

    Attributes:
        largest: {"boxes": pixels, "scores": ..., "masks": ..., if there are any}.
        detections: that were compared.
    """

    largest: dict[str, float]
    detections: int


@torch.no_grad()
def compare_detections(
    run: Callable[[Tensor], Detections], detector: nn.Module, images: list[Tensor], path: str
) -> Difference:
    """Compare what a file and its detector find, on images of several sizes.

    Args:
        run: of :func:`~aid_tools.export.formats.load_exported`.
        detector: in eval mode, on the CPU.
        images: inputs of the file.
        path: of the file, for the message.

    Raises:
        AIDError: they differ by more than :data:`TOLERANCE`, or nothing is found that could be
            compared.
    """
    largest, detections = {}, 0
    for image in (_scaled(image, scale) for image in images for scale in SCALES):
        expected = _of_detector(detector, image)
        found = run(image)
        where = f"on an image of {image.shape[1]}x{image.shape[2]}"
        if len(found[0]) != len(expected[0]):
            raise AIDError(
                f"{path} is not used: {where} it finds {len(found[0])} objects, the detector "
                f"{len(expected[0])}; choose another format"
            )
        for name, value in _differences(found, expected).items():
            largest[name] = max(largest.get(name, 0.0), value)
            if not value <= TOLERANCE[name]:
                raise AIDError(
                    f"{path} is not used: {where} its {name} differ from the detector's by "
                    f"{value:.2g}, more than {TOLERANCE[name]:g}; choose another format"
                )
        detections += len(expected[0])
    if not detections:
        raise AIDError(
            "the detector finds nothing on the images of the comparison, which says nothing about "
            "the exported files: name others with --images"
        )
    return Difference(largest, detections)


def _scaled(image: Tensor, scale: float) -> Tensor:
    if scale == 1:
        return image
    return torch.nn.functional.interpolate(image[None], scale_factor=scale, mode="bilinear")[0]


def _of_detector(detector: nn.Module, image: Tensor) -> Detections:
    """Detections by the detector's own ``forward``; masks before they are pasted into the image."""
    (output,) = detector([{"image": image}])
    found = output["instances"]
    boxes = (found.pred_boxes.tensor, found.scores, found.pred_classes)
    if not found.has("pred_masks"):
        return boxes
    (raw,) = detector.inference([{"image": image}], do_postprocess=False)
    return (*boxes, raw.pred_masks[raw.pred_boxes.nonempty()])


def _differences(found: Detections, expected: Detections) -> dict[str, float]:
    """Largest difference of boxes, scores and masks, detection by detection.

    Each is compared with the nearest box of its class: where scores are all but equal, order says
    nothing.
    """
    names = ("boxes", "scores", "masks")[: len(expected) - 1]
    if not len(expected[0]):
        return dict.fromkeys(names, 0.0)
    between = (expected[0][:, None] - found[0][None]).abs().amax(dim=2)
    between[expected[2][:, None] != found[2][None]] = torch.inf
    # Boxes that were cut off at the image's edge may be the same: there scores tell.
    rest = between + (expected[1][:, None] - found[1][None]).abs()
    nearest = []
    for row in range(len(rest)):
        nearest.append(int(rest[row].argmin()))
        rest[:, nearest[-1]] = torch.inf
    largest = [between[range(len(nearest)), nearest].max()]
    for a, b in zip((found[1], *found[3:]), (expected[1], *expected[3:]), strict=True):
        largest.append((a[nearest] - b).abs().max())
    return dict(zip(names, map(float, largest), strict=True))
