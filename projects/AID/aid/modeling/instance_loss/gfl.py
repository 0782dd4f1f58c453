"""Instance losses of GFL. Shape letters as in base.py; B: bins of a distribution."""

from functools import partial

import torch
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor

from ..gfl import GFL, assign_cells, quality_focal_losses
from .anchors import losses_per_instance
from .base import InstanceLosses, Targets, instance_losses, loss_levels

__all__ = ["match_cells"]


@loss_levels.register
def _(detector: GFL) -> tuple[str, ...]:
    return tuple(detector.head_in_features)


@instance_losses.register
@torch.no_grad()
def gfl_losses(
    detector: GFL,
    images: ImageList,
    features: dict[str, Tensor],
    targets: list[Instances],
    background: bool = True,
) -> InstanceLosses:
    """Quality focal loss and weighted GIoU and distribution losses; see :func:`instance_losses`.

    Each cell of an instance counts alike: the score, by which boxes weigh in training, would make
    a small loss of a bad box that the detector is not sure of. What a score should be is the IoU
    of the box that the detector gives, as in training.
    """
    truth = Targets.from_instances(targets)
    features = [features[level] for level in detector.head_in_features]
    anchors = detector.anchor_generator(features)
    predictions = detector.head(features)
    logits, distributions = detector.transpose(predictions)  # (N, R, K), (N, R, 4 * B)
    boxes = Boxes.cat(anchors).tensor.expand(len(logits), -1, 4)
    logits, distributions, boxes = (x.flatten(0, 1) for x in (logits, distributions, boxes))

    def losses(owner: Tensor, at: Tensor | slice) -> tuple[Tensor, Tensor]:
        quality, giou, distribution = detector.box_losses(
            distributions[at], boxes[at], truth.boxes[owner]
        )
        quality = torch.where(owner != truth.nobody, quality, 0.0)
        cls = quality_focal_losses(logits[at], truth.classes[owner], quality, detector.quality_beta)
        # Nothing is known of a teacher where the truth has no area.
        has_area = (truth.boxes[:, 2:] > truth.boxes[:, :2]).all(dim=1)[owner]
        return cls, torch.where(has_area, giou + distribution, torch.inf)

    match = partial(match_cells, detector, anchors)
    found = losses_per_instance(losses, match, anchors, truth, loss_levels(detector))
    found.predictions = predictions
    return found


def match_cells(detector: GFL, anchors: list[Boxes], boxes: Boxes) -> tuple[Tensor, Tensor, Tensor]:
    """A :data:`Match` of an image's boxes with cells, by the detector's own rule; none is ignored.

    Args:
        detector: says how many cells of a level an instance may have.
        anchors: of each level.
        boxes: of an image.
    """
    owner, best = assign_cells(boxes, anchors, detector.topk)
    return owner, (owner < len(boxes)).long(), best
