"""Instance losses of two-stage detectors: Faster, Mask and Cascade R-CNN.

Mask and keypoint losses do not count. Shape letters as in base.py.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import assign_boxes_to_levels
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import CascadeROIHeads, FastRCNNOutputLayers, StandardROIHeads
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from torch import Tensor, nn

from ...errors import AIDError
from .anchors import anchor_losses
from .base import InstanceLosses, Targets, box_losses, instance_losses, loss_levels, mean_by

__all__ = ["deltas_of_class", "match_rois"]


@loss_levels.register
def _(detector: GeneralizedRCNN) -> tuple[str, ...]:
    for part, kind in ((detector.proposal_generator, RPN), (detector.roi_heads, StandardROIHeads)):
        if not isinstance(part, kind):
            raise AIDError(
                f"TEACHER.CONFIG_FILE: instance losses need {kind.__name__} or a subclass, "
                f"the teacher has {type(part).__name__}: choose an FPN teacher"
            )
    return tuple(detector.proposal_generator.in_features)


@instance_losses.register
@torch.no_grad()
def generalized_rcnn_losses(
    detector: GeneralizedRCNN,
    images: ImageList,
    features: dict[str, Tensor],
    targets: list[Instances],
    background: bool = True,
) -> InstanceLosses:
    """RoI and RPN losses of an R-CNN with FPN; see :func:`instance_losses`.

    A cascade's RoI losses are means over its stages, so that alpha keeps its meaning.
    """
    truth = Targets.from_instances(targets)
    losses, proposals = _rpn_losses(
        detector.proposal_generator, loss_levels(detector), images, features, truth
    )
    losses.predictions = proposals
    heads = detector.roi_heads
    # What belongs to nobody may yet belong to somebody in a later stage of a cascade.
    keep_negatives = background or isinstance(heads, CascadeROIHeads)
    stages = list(
        _roi_losses(heads, losses.levels, images, features, proposals, truth, keep_negatives)
    )
    for part in ("cls", "box"):
        losses.parts[part] = torch.stack([stage[part] for stage in stages]).mean(dim=0)
    losses.background["cls"] = torch.stack([stage["background"] for stage in stages]).mean(dim=0)
    return losses


def _rpn_losses(
    rpn: RPN,
    levels: tuple[str, ...],
    images: ImageList,
    features: dict[str, Tensor],
    truth: Targets,
) -> tuple[InstanceLosses, list[Boxes]]:
    """Objectness and box losses of the RPN, and the proposals it would hand to the RoI heads."""
    features = [features[level] for level in rpn.in_features]
    anchors = rpn.anchor_generator(features)
    logits, deltas = rpn.rpn_head(features)
    # The layout of RPN.forward: (N, A * B, H, W) -> (N, H * W * A, B).
    logits = [x.permute(0, 2, 3, 1).flatten(1) for x in logits]
    deltas = [x.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3) for x in deltas]
    proposals = rpn.predict_proposals(anchors, logits, deltas, images.image_sizes)

    def objectness_losses(owner: Tensor, logits: Tensor) -> Tensor:
        is_object = (owner != truth.nobody).to(logits.dtype)
        return F.binary_cross_entropy_with_logits(logits, is_object, reduction="none")

    losses = anchor_losses(
        rpn,
        objectness_losses,
        torch.cat(logits, dim=1),
        torch.cat(deltas, dim=1),
        anchors,
        truth,
        levels,
        prefix="rpn_",
    )
    return losses, [p.proposal_boxes for p in proposals]


def _roi_losses(
    heads: StandardROIHeads,
    levels: tuple[str, ...],
    images: ImageList,
    features: dict[str, Tensor],
    proposals: list[Boxes],
    truth: Targets,
    keep_negatives: bool,
) -> Iterator[dict[str, Tensor]]:
    """For every stage "cls" (G,), "box" (G,) and "background" (N, L).

    The ground-truth boxes are the last RoIs of their image and belong to themselves, so that every
    instance has a loss; in a cascade the boxes refined from them go on doing so.
    """
    pooled = [features[level] for level in heads.box_in_features]
    # Levels of the pooler, whose first one need not be the RPN's first one.
    offset = levels.index(heads.box_in_features[0])
    num_regions = len(proposals) * len(levels)
    rois = [Boxes.cat([p, Boxes(truth.boxes[truth.of_image(i)])]) for i, p in enumerate(proposals)]
    for box_head, predictor, matcher in _stages(heads):
        rois, owner, negative = match_rois(matcher, rois, truth, keep_negatives)
        scores, deltas = predictor(box_head(heads.box_pooler(pooled, rois)))
        scores, deltas = scores.float(), deltas.float()
        boxes = torch.cat([b.tensor for b in rois])
        cls = _classification_losses(predictor, scores, owner, truth)
        own_deltas = deltas_of_class(predictor, deltas, truth.classes[owner])
        box = box_losses(predictor, boxes, own_deltas, truth.boxes[owner])
        image = torch.cat([torch.full((len(b),), i) for i, b in enumerate(rois)]).to(owner.device)
        pooler = heads.box_pooler
        level = offset + assign_boxes_to_levels(
            rois,
            pooler.min_level,
            pooler.max_level,
            pooler.canonical_box_size,
            pooler.canonical_level,
        )
        region = torch.where(negative, image * len(levels) + level, num_regions)
        yield {
            "cls": mean_by(owner, cls, truth.nobody)[0],
            "box": mean_by(owner, box, truth.nobody)[0],
            "background": mean_by(region, cls, num_regions)[0].view(len(rois), len(levels)),
        }
        if isinstance(heads, CascadeROIHeads):
            refined = predictor.box2box_transform.apply_deltas(deltas, boxes)
            rois = [Boxes(b) for b in refined.split([len(b) for b in rois])]
            for boxes_per_image, size in zip(rois, images.image_sizes, strict=True):
                boxes_per_image.clip(size)


def _stages(heads: StandardROIHeads) -> list[tuple[nn.Module, FastRCNNOutputLayers, Matcher]]:
    if isinstance(heads, CascadeROIHeads):
        return list(zip(heads.box_head, heads.box_predictor, heads.proposal_matchers, strict=True))
    return [(heads.box_head, heads.box_predictor, heads.proposal_matcher)]


def match_rois(
    matcher: Matcher, rois: list[Boxes], truth: Targets, keep_negatives: bool
) -> tuple[list[Boxes], Tensor, Tensor]:
    """The instance that owns each of the S RoIs, or nobody, and which RoIs are negatives.

    Most proposals belong to nobody, and to pool them all costs as much as the backbone on a CPU.
    So the RoIs come back too: without ``keep_negatives`` those that belong to nobody are left out
    of images in which there is somebody.
    """
    kept, owners, negatives = [], [], []
    for image, boxes in enumerate(rois):
        of_image = truth.of_image(image)
        index, label = matcher(pairwise_iou(Boxes(truth.boxes[of_image]), boxes))
        num_instances = of_image.stop - of_image.start
        own = torch.arange(num_instances, device=index.device)
        index = torch.cat([index[: len(boxes) - num_instances], own])
        label = torch.cat([label[: len(boxes) - num_instances], label.new_ones(num_instances)])
        if num_instances and not keep_negatives:
            positive = (label == 1).nonzero().squeeze(1)
            boxes, index, label = boxes[positive], index[positive], label[positive]
        kept.append(boxes)
        owners.append(torch.where(label == 1, index + of_image.start, truth.nobody))
        negatives.append(label == 0)
    return kept, torch.cat(owners), torch.cat(negatives)


def _classification_losses(
    predictor: FastRCNNOutputLayers, scores: Tensor, owner: Tensor, truth: Targets
) -> Tensor:
    """Loss (S,) of the scores (S, K + 1); the last class is background."""
    num_classes = predictor.num_classes
    classes = torch.where(owner == truth.nobody, num_classes, truth.classes[owner])
    if not predictor.use_sigmoid_ce:
        return F.cross_entropy(scores, classes, reduction="none")
    one_hot = F.one_hot(classes, num_classes + 1)[:, :num_classes].to(scores.dtype)
    return F.binary_cross_entropy_with_logits(
        scores[:, :num_classes], one_hot, reduction="none"
    ).sum(dim=1)


def deltas_of_class(predictor: FastRCNNOutputLayers, deltas: Tensor, classes: Tensor) -> Tensor:
    """The box prediction (S, 4) for the given classes (S,), out of (S, 4) or (S, K * 4)."""
    if deltas.shape[1] == 4:
        return deltas
    index = classes[:, None, None].expand(-1, 1, 4)
    return deltas.unflatten(1, (predictor.num_classes, 4)).gather(1, index).squeeze(1)
