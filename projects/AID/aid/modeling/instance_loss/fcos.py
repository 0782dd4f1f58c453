"""Instance losses of FCOS, whose samples are points. Shape letters as in base.py; R: points."""

import torch
import torch.nn.functional as F
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor

from .anchors import AnchorMatches
from .base import InstanceLosses, Targets, instance_losses, loss_levels
from .dense import focal_losses

__all__ = ["match_points"]

EPSILON = 1e-7  # of fvcore's giou_loss


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

    def losses(owner: Tensor, logits, deltas, centerness, boxes) -> dict[str, Tensor]:
        own = truth.boxes[owner]
        target = _centerness(detector.box2box_transform.get_deltas(boxes, own))
        found = detector.box2box_transform.apply_deltas(deltas, boxes)
        return {
            "cls": focal_losses(detector, truth, owner, logits),
            "box": _giou_losses(found, own),
            "ctr": F.binary_cross_entropy_with_logits(
                centerness.squeeze(1), target, reduction="none"
            ),
        }

    matches = match_points(detector, points, truth)
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


def _giou_losses(boxes: Tensor, targets: Tensor) -> Tensor:
    """The IoU loss (S,) that FCOS trains on, fvcore's, without waiting for numbers from the device.

    Infinite for a target without area, to which FCOS never assigns a point.
    """
    both = torch.stack([boxes, targets])
    first, last = both[..., :2], both[..., 2:]
    common = (last.amin(dim=0) - first.amax(dim=0)).clamp(min=0).prod(dim=1)
    hull = (last.amax(dim=0) - first.amin(dim=0)).prod(dim=1)
    area = (last - first).prod(dim=2)
    union = area.sum(dim=0) - common
    losses = 1 - common / (union + EPSILON) + (hull - union) / (hull + EPSILON)
    return torch.where(area[1] > 0, losses, torch.inf)


def match_points(detector: FCOS, points: list[Boxes], truth: Targets) -> AnchorMatches:
    """Match every point by the detector's own rule; it ignores none.

    Args:
        detector: says which points an instance may have.
        points: squares of the size of the stride, of each level.
        truth: ground truth of the N images.
    """
    centers = Boxes.cat(points).get_centers()
    level = torch.cat([torch.full((len(p),), i) for i, p in enumerate(points)]).to(centers.device)
    owner = torch.full((len(truth.first) - 1, len(centers)), truth.nobody, device=centers.device)
    best = [torch.zeros(0, dtype=torch.long, device=centers.device)]
    for image, owner_of in enumerate(owner):
        of_image = truth.of_image(image)
        boxes = Boxes(truth.boxes[of_image])
        if not len(boxes):
            continue
        quality, index = detector._match_anchors(boxes, points).max(dim=0)
        # The threshold of FCOS.label_anchors.
        owner_of.copy_(torch.where(quality < 1e-5, truth.nobody, index + of_image.start))
        best.append(_nearest_points(points, boxes, centers, level) + image * len(centers))
    return AnchorMatches(
        owner=owner,
        negative=owner == truth.nobody,
        level=level,
        best=torch.cat(best),
        num_levels=len(points),
    )


def _nearest_points(points: list[Boxes], boxes: Boxes, centers: Tensor, level: Tensor) -> Tensor:
    """For each box the point next to its center, on the level that is to find boxes of its size.

    That is by FCOS the one whose points see the farthest side at up to 8 strides; from a box's
    center it is half of its longer side away.

    Args:
        points: squares of the size of the stride, of each level.
        boxes: of an image.
        centers, level: (R, 2) and (R,), of the points of all levels.
    """
    farthest = (boxes.tensor[:, 2:] - boxes.tensor[:, :2]).amax(dim=1) / 2
    strides = torch.stack([x.tensor[0, 2] - x.tensor[0, 0] for x in points])
    wanted = (farthest[:, None] >= 8 * strides[:-1]).sum(dim=1)
    distance = (centers - boxes.get_centers()[:, None]).abs().amax(dim=2)
    return torch.where(level == wanted[:, None], distance, torch.inf).argmin(dim=1)
