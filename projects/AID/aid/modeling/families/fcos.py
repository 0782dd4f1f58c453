"""FCOS (Tian et al., arXiv 1904.01355), whose samples are points. Shape letters as in base.py.

R: points of one image, all levels
"""

from functools import partial

import torch
import torch.nn.functional as F
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor

from ...utils.d2 import match_fcos_points
from ..boxes import elementwise_box_giou
from .anchors import Match
from .base import PerInstanceLosses, Targets, per_instance_losses
from .dense import anchor_match, focal_losses, losses_at_points, register_dense

__all__ = ["match_points"]

register_dense(FCOS, "MODEL.FCOS.NUM_CLASSES")


@anchor_match.register
def _(detector: FCOS, anchors: list[Boxes]) -> Match:
    return partial(match_points, detector, anchors)


@per_instance_losses.register
@torch.no_grad()
def fcos_losses(
    detector: FCOS,
    images: ImageList,
    features: dict[str, Tensor],
    targets: list[Instances],
    background: bool = True,
) -> PerInstanceLosses:
    """Focal loss, summed over classes, GIoU loss and centerness loss; see
    :func:`per_instance_losses`.

    The samples of an instance are the points that FCOS assigns to it. An instance without points,
    because it lies between them or inside a smaller one's, is represented by the point nearest to
    its center.
    """
    return losses_at_points(detector, features, targets, _sample_losses)


def _sample_losses(
    detector: FCOS,
    truth: Targets,
    matched_gt: Tensor,
    boxes: Tensor,
    logits: Tensor,
    deltas: Tensor,
    centerness: Tensor,
) -> dict[str, Tensor]:
    """Losses (S,) of points; logits (S, K), deltas (S, 4), centerness (S, 1)."""
    gt_boxes = truth.boxes[matched_gt]
    target = _centerness(detector.box2box_transform.get_deltas(boxes, gt_boxes))
    decoded = detector.box2box_transform.apply_deltas(deltas, boxes)
    return {
        "cls": focal_losses(detector, truth, matched_gt, logits),
        "box": 1 - elementwise_box_giou(decoded, gt_boxes)[1],
        "ctr": F.binary_cross_entropy_with_logits(centerness.squeeze(1), target, reduction="none"),
    }


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
    """A :data:`Match` of an image's boxes with points, by FCOS's own rule; no point is ignored.

    Args:
        detector: with the rule.
        points: squares of the size of the stride, of each level.
        boxes: of an image.
    """
    quality = match_fcos_points(detector, boxes, points)
    # A last row that wins below the threshold of FCOS.label_anchors.
    matched_gt = torch.cat([quality, quality.new_full((1, quality.shape[1]), 1e-5)]).argmax(dim=0)
    return matched_gt, (matched_gt < len(boxes)).long(), _nearest_points(points, boxes)


def _nearest_points(points: list[Boxes], boxes: Boxes) -> Tensor:
    """Point nearest to the center of each box (G,), on the level that detects boxes of its size.

    In FCOS that is the level whose range, up to 8 strides, holds the distance to the farthest side,
    which is half of the longer side at the center of a box.

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
