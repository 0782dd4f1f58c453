"""Losses of GFL (arXiv 2006.04388), one value per cell.

Shape letters as in gfl.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["distribution_focal_losses", "quality_focal_losses", "soft_quality_focal_losses"]

# Distances are at most the last bin minus this, for a bin on either side, as in the authors' code.
BIN_MARGIN = 0.1


def quality_focal_losses(logits: Tensor, classes: Tensor, quality: Tensor, beta: float) -> Tensor:
    """Quality focal loss: cross-entropy of score and quality, times ``|quality - score| ** beta``.

    Args:
        logits: (S, K).
        classes: (S,), in [0, K), arbitrary for background.
        quality: (S,), in [0, 1], target of the score of that class; 0 for background.
        beta: exponent; the larger, the smaller the loss of scores that are nearly right.

    Returns:
        (S,), summed over classes.
    """
    target = torch.zeros_like(logits).scatter_(1, classes[:, None], quality[:, None])
    return soft_quality_focal_losses(logits, target, beta)


def soft_quality_focal_losses(logits: Tensor, scores: Tensor, beta: float) -> Tensor:
    """Quality focal loss with a target for each class.

    Args:
        logits: (S, K).
        scores: (S, K), targets in [0, 1].
        beta: see :func:`quality_focal_losses`.

    Returns:
        (S,), summed over classes.
    """
    entropy = F.binary_cross_entropy_with_logits(logits, scores, reduction="none")
    return (entropy * (scores - logits.sigmoid()).abs() ** beta).sum(dim=1)


def distribution_focal_losses(logits: Tensor, distances: Tensor) -> Tensor:
    """Distribution focal loss: cross-entropy with the two bins beside the true distance.

    The bins are weighted such that the expectation of the target is the true distance.

    Args:
        logits: (S, 4 * B).
        distances: (S, 4), in cells; clamped to the range of the bins.

    Returns:
        (S,), mean over the four sides.
    """
    log_p = logits.unflatten(1, (4, -1)).log_softmax(dim=2)
    distances = distances.clamp(0, log_p.shape[2] - 1 - BIN_MARGIN)
    left = distances.floor()
    share = distances - left  # weight of the right bin
    index = left.long()[..., None]
    log_left, log_right = (log_p.gather(2, i).squeeze(2) for i in (index, index + 1))
    return -((1 - share) * log_left + share * log_right).mean(dim=1)
