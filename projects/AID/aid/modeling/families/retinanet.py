"""RetinaNet (Lin et al., arXiv 1708.02002). Shape letters as in base.py."""

from functools import partial

import torch
from detectron2.modeling import RetinaNet
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor

from .anchors import Match, anchor_losses, match_by_overlap
from .base import PerInstanceLosses, Targets, loss_levels, per_instance_losses
from .dense import anchor_match, flatten_predictions, focal_losses, register_dense

__all__ = []

register_dense(RetinaNet, "MODEL.RETINANET.NUM_CLASSES")


@anchor_match.register
def _(detector: RetinaNet, anchors: list[Boxes]) -> Match:
    return partial(match_by_overlap, detector.anchor_matcher, Boxes.cat(anchors))


@per_instance_losses.register
@torch.no_grad()
def retinanet_losses(
    detector: RetinaNet,
    images: ImageList,
    features: dict[str, Tensor],
    targets: list[Instances],
    background: bool = True,
) -> PerInstanceLosses:
    """Focal loss, summed over classes, and box loss; see :func:`per_instance_losses`."""
    truth = Targets.from_instances(targets)
    maps = [features[level] for level in detector.head_in_features]
    anchors = detector.anchor_generator(maps)
    predictions = detector.head(maps)
    logits, deltas = flatten_predictions(detector, predictions)

    match, focal = anchor_match(detector, anchors), partial(focal_losses, detector, truth)
    levels = loss_levels(detector)
    losses = anchor_losses(detector, match, focal, logits, deltas, anchors, truth, levels)
    losses.predictions = predictions
    return losses
