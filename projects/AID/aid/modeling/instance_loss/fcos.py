"""Instance losses of FCOS, whose samples are points. Shape letters as in base.py; R: points."""

from functools import partial

import torch
import torch.nn.functional as F
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor

from ..overlaps import overlaps
from .anchors import match_anchors
from .base import InstanceLosses, Targets, instance_losses, loss_levels
from .dense import focal_losses

__all__ = ["match_points"]


@loss_levels.register
def _(detector: FCOS) -> tuple[str, ...]:
    return tuple(detector.head_in_features)


@instance_losses.register
@torch.no_grad()
def fcos_losses(
    detector: FCOS,
    images: ImageList,
    features: dict[str, Tensor],
    targets: list[Instances],
    background: bool = True,
) -> InstanceLosses:
    """Focal loss (summed over classes), GIoU loss and centerness loss; see :func:`instance_losses`.

    The samples of an instance are the points that FCOS itself assigns to it. One that has none,
    because it lies between points or inside a smaller one's, keeps the point nearest to its center.
    """
    truth = Targets.from_instances(targets)
    features = [features[level] for level in detector.head_in_features]
    points = detector.anchor_generator(features)
    predictions = detector.head(features)
    logits, deltas, centerness = (
        torch.cat(x, dim=1).float()
        for x in detector._transpose_dense_predictions(predictions, [detector.num_classes, 4, 1])
    )
    boxes = Boxes.cat(points).tensor.expand_as(deltas)
    # (S, K), (S, 4), (S, 1) and (S, 4), with S = N * R.
    samples = [x.flatten(0, 1) for x in (logits, deltas, centerness, boxes)]

    has_area = (truth.boxes[:, 2:] > truth.boxes[:, :2]).all(dim=1)

    def losses(owner: Tensor, logits, deltas, centerness, boxes) -> dict[str, Tensor]:
        own = truth.boxes[owner]
        target = _centerness(detector.box2box_transform.get_deltas(boxes, own))
        found = detector.box2box_transform.apply_deltas(deltas, boxes)
        return {
            "cls": focal_losses(detector, truth, owner, logits),
            # FCOS never assigns a point to a box without area.
            "box": torch.where(has_area[owner], 1 - overlaps(found, own)[1], torch.inf),
            "ctr": F.binary_cross_entropy_with_logits(
                centerness.squeeze(1), target, reduction="none"
            ),
        }

    matches = match_anchors(partial(match_points, detector, points), points, truth)
    everybody = torch.arange(truth.nobody, device=boxes.device)
    of_points = losses(matches.owner.flatten(), *samples)
    at_best = losses(everybody, *(x[matches.best] for x in samples))
    return InstanceLosses(
        levels=loss_levels(detector),
        parts={k: matches.per_instance(v, at_best[k]) for k, v in of_points.items()},
        background={"cls": matches.background(of_points["cls"])},
        level_share=matches.level_share(),
        predictions=predictions,
    )


def _centerness(deltas: Tensor) -> Tensor:
    """Centerness (S,) from distances (S, 4) to the left, top, right and bottom side.

    Equation 3 of arXiv 1904.01355; 0 outside of the box, which only a best point can be.
    """
    deltas = deltas.clamp(min=0)
    across, down = deltas[:, 0::2], deltas[:, 1::2]
    product = (across.amin(dim=1) / across.amax(dim=1)) * (down.amin(dim=1) / down.amax(dim=1))
    return product.nan_to_num().sqrt()


def match_points(
    detector: FCOS, points: list[Boxes], boxes: Boxes
) -> tuple[Tensor, Tensor, Tensor]:
    """A :data:`Match` of an image's boxes with points, by the detector's own rule; none is ignored.

    Args:
        detector: says which points an instance may have.
        points: squares of the size of the stride, of each level.
        boxes: of an image.
    """
    quality = detector._match_anchors(boxes, points)
    # A last row that wins below the threshold of FCOS.label_anchors.
    owner = torch.cat([quality, quality.new_full((1, quality.shape[1]), 1e-5)]).argmax(dim=0)
    return owner, (owner < len(boxes)).long(), _nearest_points(points, boxes)


def _nearest_points(points: list[Boxes], boxes: Boxes) -> Tensor:
    """For each box the point next to its center, on the level that is to find boxes of its size.

    That is by FCOS the one whose points see the farthest side at up to 8 strides; from a box's
    center it is half of its longer side away.

    Args:
        points: squares of the size of the stride, of each level.
        boxes: of an image.
    """
    farthest = (boxes.tensor[:, 2:] - boxes.tensor[:, :2]).amax(dim=1) / 2
    strides = torch.stack([x.tensor[0, 2] - x.tensor[0, 0] for x in points])
    wanted = (farthest[:, None] >= 8 * strides[:-1]).sum(dim=1)
    level = torch.cat([x.tensor.new_full((len(x),), i) for i, x in enumerate(points)])
    centers = Boxes.cat(points).get_centers()
    distance = (centers - boxes.get_centers()[:, None]).abs().amax(dim=2)
    return torch.where(level == wanted[:, None], distance, torch.inf).argmin(dim=1)
