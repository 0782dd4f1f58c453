"""Instance losses of GFL. Shape letters as in base.py; B: bins of a distribution."""

import torch
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor

from ..gfl import GFL, assign_cells, quality_focal_losses
from .anchors import losses_per_instance
from .base import InstanceLosses, Targets, instance_losses, loss_levels

__all__ = []


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
    logits, distributions = detector.transpose(detector.head(features))  # (N, R, K), (N, R, 4 * B)
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

    def match(truth_of_image: Boxes) -> tuple[Tensor, Tensor, Tensor]:
        owner, best = assign_cells(truth_of_image, anchors, detector.topk)
        return owner, (owner < len(truth_of_image)).long(), best

    return losses_per_instance(losses, match, anchors, truth, loss_levels(detector))
