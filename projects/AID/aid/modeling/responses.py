"""What detectors answer about given boxes: their class logits, before any decision.

Shape letters: N images, G instances of the batch, K classes.
"""

from detectron2.modeling.roi_heads import CascadeROIHeads, StandardROIHeads
from detectron2.structures import Boxes
from torch import Tensor, nn

from ..errors import AIDError

__all__ = ["box_logits", "check_answers"]


def check_answers(detector: nn.Module, whose: str) -> None:
    """Check that :func:`box_logits` can ask a detector.

    Args:
        detector: of Detectron2.
        whose: "teacher" or "student", for the message.

    Raises:
        AIDError: it is not a two-stage detector with one box head.
    """
    heads = getattr(detector, "roi_heads", None)
    # A cascade's stages have an answer each.
    if not isinstance(heads, StandardROIHeads) or isinstance(heads, CascadeROIHeads):
        kind = type(detector if heads is None else heads).__name__
        raise AIDError(
            f"DISTILLATION.LOSSES: BoxResponseLoss needs a Faster or Mask R-CNN on both sides, the "
            f"{whose} is a {kind}: leave the loss out, or choose another {whose}"
        )


def box_logits(detector: nn.Module, features: dict[str, Tensor], boxes: list[Boxes]) -> Tensor:
    """Class logits of a two-stage detector for boxes that it is given.

    Args:
        detector: that :func:`check_answers` accepts.
        features: {level: (N, C, H, W)}, of its backbone.
        boxes: of each of N images, (G_n).

    Returns:
        (G, K + 1), image after image; the background is last.
    """
    heads = detector.roi_heads
    pooled = heads.box_pooler([features[level] for level in heads.box_in_features], boxes)
    logits, _ = heads.box_predictor(heads.box_head(pooled))
    return logits
