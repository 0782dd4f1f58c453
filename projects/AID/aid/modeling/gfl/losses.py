"""The losses of GFL (arXiv 2006.04388), one value per cell.

Shape letters:

    S: cells    K: classes    B: bins of a distribution, one per whole distance 0 ... reg_max
"""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["distribution_focal_losses", "quality_focal_losses", "soft_quality_focal_losses"]

# Distances end this far below the last bin, so that each has a bin on its right: the authors'.
MARGIN = 0.1


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
    return soft_quality_focal_losses(logits, target, beta)


def soft_quality_focal_losses(logits: Tensor, scores: Tensor, beta: float) -> Tensor:
    """The same with a target for each class.

    Args:
        logits, scores: (S, K), what is said, and in [0, 1] what should be.
        beta: see :func:`quality_focal_losses`.

    Returns:
        (S,), summed over classes.
    """
    entropy = F.binary_cross_entropy_with_logits(logits, scores, reduction="none")
    return (entropy * (scores - logits.sigmoid()).abs() ** beta).sum(dim=1)


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
