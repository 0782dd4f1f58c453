"""Drawing of boxes and imitation weights on images.

Shape letters: G ground-truth instances, H and W height and width, H_l and W_l of an FPN level.
"""

import math

import cv2
import numpy as np
from detectron2.data.detection_utils import convert_image_to_rgb
from matplotlib import colormaps
from torch import Tensor

__all__ = ["COLORMAP", "MAX_AREA", "draw_boxes", "draw_weights", "enlarge", "weight_image"]

# Perceptually uniform; dark for a weight of 0, yellow for 1.
COLORMAP = colormaps["viridis"]
# Narrower images are enlarged, so that labels are legible.
MIN_WIDTH = 960
# Limits of the area and the side in pixels to which images are enlarged: a narrow image may be
# high, and JPEG has at most 65500 rows.
MAX_AREA = 1 << 23
MAX_SIDE = 65500


def enlarge(image: np.ndarray) -> tuple[np.ndarray, int]:
    """Enlarge a small image (H, W, 3) by an integer factor; return the image and the factor."""
    height, width = image.shape[:2]
    largest = min(math.isqrt(MAX_AREA // (height * width)), MAX_SIDE // max(height, width))
    factor = max(1, min(-(-MIN_WIDTH // width), largest))
    return image.repeat(factor, axis=0).repeat(factor, axis=1), factor


def draw_boxes(
    image: np.ndarray, boxes: np.ndarray, colors: list[tuple[int, int, int]], labels: list[str]
) -> np.ndarray:
    """Draw labeled boxes on a copy of an image.

    Args:
        image: (H, W, 3), uint8.
        boxes: (G, 4), XYXY in pixels.
        colors: G colors, 0 to 255, in the image's channel order.
        labels: G texts.

    Returns:
        (H, W, 3), uint8.
    """
    image = np.ascontiguousarray(image).copy()
    font, size, thickness = cv2.FONT_HERSHEY_SIMPLEX, 0.45, 1
    for (x1, y1, x2, y2), color, label in zip(
        boxes.round().astype(int).tolist(), colors, labels, strict=True
    ):
        cv2.rectangle(image, (x1, y1), (x2, y2), color, 2)
        (width, height), _ = cv2.getTextSize(label, font, size, thickness)
        x = max(0, min(x1, image.shape[1] - width))
        y = y1 - 3 if y1 > height + 6 else min(y2 + height + 3, image.shape[0] - 2)
        cv2.rectangle(image, (x, y - height - 2), (x + width, y + 2), (20, 20, 20), -1)
        cv2.putText(image, label, (x, y), font, size, (255, 255, 255), thickness, cv2.LINE_AA)
    return image


def draw_weights(image: np.ndarray, boxes: Tensor, weights: Tensor, losses: Tensor) -> np.ndarray:
    """Draw boxes colored by weight and labeled with the weight and the per-instance loss D.

    Args:
        image: (H, W, 3), RGB, uint8; a small one is enlarged.
        boxes: (G, 4), XYXY in pixels of ``image``.
        weights: (G,), imitation weights in [0, 1].
        losses: (G,), D of the teacher.

    Returns:
        (H', W', 3), RGB, uint8.
    """
    image, factor = enlarge(image)
    pairs = list(zip(weights.tolist(), losses.tolist(), strict=True))
    colors = [tuple(int(255 * c) for c in COLORMAP(weight)[:3]) for weight, _ in pairs]
    labels = [f"w {weight:.2f} D {loss:.1f}" for weight, loss in pairs]
    return draw_boxes(image, boxes.cpu().numpy() * factor, colors, labels)


def weight_image(
    sample: dict,
    input_format: str,
    weights: Tensor,
    losses: Tensor,
    weight_map: Tensor,
    stride: int,
) -> np.ndarray:
    """Draw a training image with its weighted boxes above the weight map of one FPN level.

    Args:
        sample: one element of the model's ``batched_inputs``.
        input_format: channel order of the image.
        weights, losses: (G,), of the image's instances.
        weight_map: (H_l, W_l), including the padding of the batch.
        stride: of the map, in pixels.

    Returns:
        (3, 2 * H, W), RGB, uint8, for ``EventStorage.put_image``; a small image is enlarged.
    """
    image = convert_image_to_rgb(sample["image"].permute(1, 2, 0), input_format)
    boxes = draw_weights(image, sample["instances"].gt_boxes.tensor, weights, losses)
    cells = weight_map.clamp(0, 1).cpu().numpy().repeat(stride, axis=0).repeat(stride, axis=1)
    cells = cells[: image.shape[0], : image.shape[1]]
    painted, _ = enlarge((COLORMAP(cells)[..., :3] * 255).astype(np.uint8))
    return np.concatenate([boxes, painted]).transpose(2, 0, 1)
