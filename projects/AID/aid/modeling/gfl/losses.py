"""The losses of GFL (arXiv 2006.04388), one value per cell.

Shape letters:

    S: cells    K: classes    B: bins of a distribution, one per whole distance 0 ... reg_max
"""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["distribution_focal_losses", "quality_focal_losses", "quality_of_boxes"]

# Distances end this far below the last bin, so that each has a bin on its right: the authors'.
MARGIN = 0.1
# The least area to divide by, in square pixels.
EPSILON = 1e-7


def quality_focal_losses(logits: Tensor, classes: Tensor, quality: Tensor, beta: float) -> Tensor:
    """Cross-entropy of a score with the quality of its box, times ``|quality - score| ** beta``.

    Args:
        logits: (S, K).
        classes: (S,), in [0, K); that of a cell without instance does not matter.
        quality: (S,), in [0, 1], what the score of that class should be; 0 without instance.
        beta: how little is learned where the score is nearly right.

    Returns:
        (S,), summed over classes.
    """
    target = torch.zeros_like(logits).scatter_(1, classes[:, None], quality[:, None])
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (entropy * (target - logits.sigmoid()).abs() ** beta).sum(dim=1)


def distribution_focal_losses(logits: Tensor, distances: Tensor) -> Tensor:
    """Cross-entropy of a distribution with the two bins beside the true distance.

    The nearer of the two bins weighs more, so that the true distance is the expectation of what is
    learned.

    Args:
        logits: (S, 4 * B).
        distances: (S, 4), in cells; clamped to what the bins can say.

    Returns:
        (S,), the mean over the four sides.
    """
    log_p = logits.unflatten(1, (4, -1)).log_softmax(dim=2)
    distances = distances.clamp(0, log_p.shape[2] - 1 - MARGIN)
    left = distances.floor()
    share = distances - left  # of the right bin
    index = left.long()[..., None]
    log_left, log_right = (log_p.gather(2, i).squeeze(2) for i in (index, index + 1))
    return -((1 - share) * log_left + share * log_right).mean(dim=1)


def quality_of_boxes(boxes: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalized IoU (arXiv 1902.09630) of each predicted box with the true one.

    Detectron2's and torchvision's select or assert, which waits for the device; this does not.

    Args:
        boxes, targets: (S, 4), XYXY.

    Returns:
        (S,) and (S,).
    """
    size = (boxes[:, 2:] - boxes[:, :2]).unbind(dim=1)
    true_size = (targets[:, 2:] - targets[:, :2]).unbind(dim=1)
    top_left = torch.maximum(boxes[:, :2], targets[:, :2])
    bottom_right = torch.minimum(boxes[:, 2:], targets[:, 2:])
    shared = (bottom_right - top_left).clamp(min=0).unbind(dim=1)
    top_left = torch.minimum(boxes[:, :2], targets[:, :2])
    bottom_right = torch.maximum(boxes[:, 2:], targets[:, 2:])
    hull = (bottom_right - top_left).unbind(dim=1)

    shared, hull = shared[0] * shared[1], hull[0] * hull[1]
    union = size[0] * size[1] + true_size[0] * true_size[1] - shared
    iou = shared / union.clamp(min=EPSILON)
    return iou, iou - (hull - union) / hull.clamp(min=EPSILON)
