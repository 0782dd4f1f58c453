"""Two-stage detectors: Faster, Mask and Cascade R-CNN with FPN.

Mask and keypoint losses are left out. Shape letters as in base.py.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import assign_boxes_to_levels
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import CascadeROIHeads, FastRCNNOutputLayers, StandardROIHeads
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...utils.errors import AIDError
from ..class_map import ClassMap
from ..placement import autocast, to_device
from .anchors import anchor_losses, match_by_overlap
from .base import (
    NUM_CLASSES_KEYS,
    PerInstanceLosses,
    Targets,
    box_losses,
    detect,
    loss_levels,
    mean_by,
    merge_classes,
    per_instance_losses,
)
from .given import predict_given
from .ignore_regions import boxes_in_regions
from .merging import merge_box_predictor, merge_masks
from .predictions import (
    PairedPredictions,
    PredictionBatch,
    PredictionRequest,
    Predictions,
    check_comparable,
    paired_predictions,
)

__all__ = ["clipped", "stages_of"]

NUM_CLASSES_KEYS[GeneralizedRCNN] = "MODEL.ROI_HEADS.NUM_CLASSES"


@loss_levels.register
def _(detector: GeneralizedRCNN) -> tuple[str, ...]:
    for module, kind in (
        (detector.proposal_generator, RPN),
        (detector.roi_heads, StandardROIHeads),
    ):
        if not isinstance(module, kind):
            raise AIDError(
                f"losses per instance need {kind.__name__} or a subclass, the detector has "
                f"{type(module).__name__}: choose a two-stage detector with an FPN"
            )
    levels = tuple(detector.proposal_generator.in_features)
    pooled = tuple(detector.roi_heads.box_in_features)
    first = levels.index(pooled[0]) if pooled[0] in levels else 0
    if levels[first : first + len(pooled)] != pooled:
        raise AIDError(
            f"MODEL.ROI_HEADS.IN_FEATURES is {', '.join(pooled)}, MODEL.RPN.IN_FEATURES "
            f"{', '.join(levels)}: losses per instance need an RPN that reads all levels of the "
            "RoI heads, in the same order; choose another detector"
        )
    return levels


@per_instance_losses.register
@torch.no_grad()
def generalized_rcnn_losses(
    detector: GeneralizedRCNN,
    images: ImageList,
    features: dict[str, Tensor],
    targets: list[Instances],
    background: bool = True,
) -> PerInstanceLosses:
    """RoI and RPN losses of an R-CNN with FPN; see :func:`per_instance_losses`.

    The RoI losses of a cascade are means over its stages, so that alpha keeps its meaning.
    """
    truth = Targets.from_instances(targets)
    losses, proposals = _rpn_losses(
        detector.proposal_generator, loss_levels(detector), images, features, truth
    )
    losses.predictions = proposals
    heads = detector.roi_heads
    # A RoI that matches no instance may match one in a later stage of a cascade.
    keep_negatives = background or isinstance(heads, CascadeROIHeads)
    stages = list(
        _roi_losses(heads, losses.levels, images, features, proposals, truth, keep_negatives)
    )
    for component in ("cls", "box"):
        of_stages = torch.stack([stage[component] for stage in stages])
        losses.components[component] = of_stages.mean(dim=0)
    losses.background["cls"] = torch.stack([stage["background"] for stage in stages]).mean(dim=0)
    return losses


def _rpn_losses(
    rpn: RPN,
    levels: tuple[str, ...],
    images: ImageList,
    features: dict[str, Tensor],
    truth: Targets,
) -> tuple[PerInstanceLosses, list[Boxes]]:
    """Objectness and box losses of the RPN, and its proposals for the RoI heads."""
    maps = [features[level] for level in rpn.in_features]
    anchors = rpn.anchor_generator(maps)
    logits, deltas = rpn.rpn_head(maps)
    # The layout of RPN.forward: (N, A * 4, H, W) -> (N, H * W * A, 4).
    logits = [x.permute(0, 2, 3, 1).flatten(1) for x in logits]
    deltas = [x.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3) for x in deltas]
    proposals = rpn.predict_proposals(anchors, logits, deltas, images.image_sizes)

    def objectness_losses(matched_gt: Tensor, logits: Tensor) -> Tensor:
        is_object = (matched_gt != truth.background_index).to(logits.dtype)
        return F.binary_cross_entropy_with_logits(logits, is_object, reduction="none")

    losses = anchor_losses(
        rpn,
        partial(match_by_overlap, rpn.anchor_matcher, Boxes.cat(anchors)),
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

    The ground-truth boxes are the last RoIs of their image and match themselves, so that every
    instance has a loss. In a cascade the boxes refined from them still do.
    """
    pooled = [features[level] for level in heads.box_in_features]
    # Levels of the pooler, whose first one need not be the RPN's first one.
    offset = levels.index(heads.box_in_features[0])
    num_regions = len(proposals) * len(levels)
    rois = [Boxes.cat([p, Boxes(truth.boxes[truth.of_image(i)])]) for i, p in enumerate(proposals)]
    for box_head, predictor, matcher in stages_of(heads):
        rois, matched_gt, negative = match_rois(matcher, rois, truth, keep_negatives)
        scores, deltas = predictor(box_head(heads.box_pooler(pooled, rois)))
        scores, deltas = scores.float(), deltas.float()
        boxes = torch.cat([b.tensor for b in rois])
        cls = _classification_losses(predictor, scores, matched_gt, truth)
        class_deltas = deltas_of_class(predictor, deltas, truth.classes[matched_gt])
        box = box_losses(predictor, boxes, class_deltas, truth.boxes[matched_gt])
        image = torch.cat([matched_gt.new_full((len(b),), i) for i, b in enumerate(rois)])
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
            "cls": mean_by(matched_gt, cls, truth.background_index)[0],
            "box": mean_by(matched_gt, box, truth.background_index)[0],
            "background": mean_by(region, cls, num_regions)[0].view(len(rois), len(levels)),
        }
        if isinstance(heads, CascadeROIHeads):
            refined = predictor.box2box_transform.apply_deltas(deltas, boxes)
            # Detectron2 refuses other boxes; the loss of this stage is not finite already.
            refined = torch.where(refined.isfinite().all(dim=1, keepdim=True), refined, boxes)
            rois = clipped(refined, rois, images.image_sizes)


def clipped(boxes: Tensor, like: list[Boxes], sizes: list[tuple[int, int]]) -> list[Boxes]:
    """Boxes (S, 4) of all images, split as ``like`` and clipped to their image."""
    per_image = [Boxes(b) for b in boxes.split([len(b) for b in like])]
    for of_image, size in zip(per_image, sizes, strict=True):
        of_image.clip(size)
    return per_image


def stages_of(heads: StandardROIHeads) -> list[tuple[nn.Module, FastRCNNOutputLayers, Matcher]]:
    """Box head, predictor and matcher of each stage: one, or several in a cascade."""
    if isinstance(heads, CascadeROIHeads):
        return list(zip(heads.box_head, heads.box_predictor, heads.proposal_matchers, strict=True))
    return [(heads.box_head, heads.box_predictor, heads.proposal_matcher)]


def match_rois(
    matcher: Matcher, rois: list[Boxes], truth: Targets, keep_negatives: bool
) -> tuple[list[Boxes], Tensor, Tensor]:
    """Match RoIs with instances.

    Most proposals match no instance, and pooling them costs as much as the backbone on a CPU.
    Without ``keep_negatives`` they are dropped in images that have an instance.

    Args:
        matcher: of the RoI heads.
        rois: of each image, the ground-truth boxes last.
        truth: ground truth of the batch.
        keep_negatives: see above.

    Returns:
        The RoIs that are kept, of each image; the instance (S,) of each, or the background index;
        and bool (S,), the RoIs that are negatives.
    """
    kept, matched, negatives = [], [], []
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
        matched.append(torch.where(label == 1, index + of_image.start, truth.background_index))
        negatives.append((label == 0) & ~boxes_in_regions(boxes, truth.regions[image]))
    return kept, torch.cat(matched), torch.cat(negatives)


def _classification_losses(
    predictor: FastRCNNOutputLayers, scores: Tensor, matched_gt: Tensor, truth: Targets
) -> Tensor:
    """Loss (S,) of the scores (S, K + 1); the last class is background."""
    num_classes = predictor.num_classes
    is_background = matched_gt == truth.background_index
    classes = torch.where(is_background, num_classes, truth.classes[matched_gt])
    if not predictor.use_sigmoid_ce:
        return F.cross_entropy(scores, classes, reduction="none")
    one_hot = F.one_hot(classes, num_classes + 1)[:, :num_classes].to(scores.dtype)
    return F.binary_cross_entropy_with_logits(
        scores[:, :num_classes], one_hot, reduction="none"
    ).sum(dim=1)


def deltas_of_class(predictor: FastRCNNOutputLayers, deltas: Tensor, classes: Tensor) -> Tensor:
    """Box prediction (S, 4) for the given classes (S,), out of (S, 4) or (S, K * 4)."""
    if deltas.shape[1] == 4:
        return deltas
    index = classes[:, None, None].expand(-1, 1, 4)
    return deltas.unflatten(1, (predictor.num_classes, 4)).gather(1, index).squeeze(1)


@merge_classes.register
def _(detector: GeneralizedRCNN, class_map: ClassMap) -> None:
    heads = detector.roi_heads
    for _, predictor, _ in stages_of(heads):
        merge_box_predictor(predictor, class_map)
    merge_masks(heads, class_map)
    heads.num_classes = len(class_map.student)


@detect.register
def _(detector: GeneralizedRCNN, images: ImageList, features: dict[str, Tensor]) -> list[Instances]:
    proposals, _ = detector.proposal_generator(images, features)
    return detector.roi_heads(images, features, proposals)[0]


@check_comparable.register
def _(teacher: GeneralizedRCNN, student: nn.Module, request: PredictionRequest, loss: str) -> None:
    for side, detector in (("teacher", teacher), ("student", student)):
        heads = getattr(detector, "roi_heads", None)
        # The stages of a cascade predict separately.
        if not isinstance(heads, StandardROIHeads) or isinstance(heads, CascadeROIHeads):
            kind = type(detector if heads is None else heads).__name__
            raise AIDError(
                f"DISTILLATION.LOSSES: {loss} needs a Faster or Mask R-CNN on both sides, the "
                f"{side} is a {kind}: leave the loss out, or choose another {side}"
            )
    of_student, of_teacher = (x.roi_heads.box_predictor.use_sigmoid_ce for x in (student, teacher))
    if of_student != of_teacher:
        raise AIDError(
            f"DISTILLATION.LOSSES: {loss} needs one kind of class logits: "
            f"MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE is {of_teacher} in the teacher, {of_student} in "
            "the student"
        )


@paired_predictions.register
def generalized_rcnn_predictions(
    teacher: GeneralizedRCNN,
    student: GeneralizedRCNN,
    request: PredictionRequest,
    batch: PredictionBatch,
) -> PairedPredictions:
    """Predictions for the ground-truth boxes and the teacher's best proposals; see
    :func:`paired_predictions`.

    Both sides pool the same RoIs from their own features. The ground-truth boxes are the last RoIs
    of their image.
    """
    truth = Targets.from_instances(batch.targets)
    with torch.no_grad(), autocast(teacher.device, batch.teacher_precision):
        proposals = _proposals(teacher, request.num_proposals, batch)
        of_image = [Boxes(truth.boxes[truth.of_image(i)]) for i in range(len(proposals))]
        rois = [Boxes.cat(x) for x in zip(proposals, of_image, strict=True)]
        rois, matched_gt, _ = match_rois(teacher.roi_heads.proposal_matcher, rois, truth, True)
        classes = truth.classes[matched_gt]
        of_teacher = _predictions(teacher, batch.teacher, rois, classes)
    of_teacher, rois, matched_gt, classes = to_device(
        (of_teacher, rois, matched_gt, classes), student.device
    )
    with _frozen_running_statistics(student.roi_heads.box_head):
        of_student = _predictions(student, batch.student, rois, classes)
    image = [matched_gt.new_full((len(x),), i) for i, x in enumerate(rois)]
    use_sigmoid = teacher.roi_heads.box_predictor.use_sigmoid_ce
    return PairedPredictions(
        student=of_student,
        teacher=of_teacher,
        activation="sigmoid" if use_sigmoid else "softmax",
        matched_gt=matched_gt,
        background_index=truth.background_index,
        image=torch.cat(image),
    )


@predict_given.register
def _(
    student: GeneralizedRCNN, batch: PredictionBatch, detections: Targets
) -> tuple[Predictions, Tensor]:
    num_images = len(detections.first) - 1
    rois = [Boxes(detections.boxes[detections.of_image(i)]) for i in range(num_images)]
    classes = detections.classes[:-1]
    with _frozen_running_statistics(student.roi_heads.box_head):
        predictions = _predictions(student, batch.student, rois, classes)
    return predictions, torch.arange(len(classes), device=classes.device)


def _proposals(teacher: GeneralizedRCNN, number: int, batch: PredictionBatch) -> list[Boxes]:
    """The teacher's best proposals in each image, by score."""
    if number == 0:  # its RPN need not run
        return [Boxes(x.gt_boxes.tensor[:0]) for x in batch.targets]
    boxes = batch.teacher_predictions
    if boxes is None:
        proposals, _ = teacher.proposal_generator(batch.images, batch.teacher)
        boxes = [x.proposal_boxes for x in proposals]
    return [x[:number] for x in boxes]


@contextmanager
def _frozen_running_statistics(head: nn.Module) -> Iterator[None]:
    """Keep the running statistics of BatchNorm those of the RoIs that the student trains on."""
    momenta = {x: x.momentum for x in head.modules() if isinstance(x, _BatchNorm)}
    try:
        for norm in momenta:
            norm.momentum = 0.0
        yield
    finally:
        for norm, momentum in momenta.items():
            norm.momentum = momentum


def _predictions(
    detector: GeneralizedRCNN, features: dict[str, Tensor], rois: list[Boxes], classes: Tensor
) -> Predictions:
    """Output of the box head for RoIs, with the boxes of the given classes (S,)."""
    heads = detector.roi_heads
    predictor = heads.box_predictor
    pooled = heads.box_pooler([features[level] for level in heads.box_in_features], rois)
    logits, deltas = (x.float() for x in predictor(heads.box_head(pooled)))
    if predictor.use_sigmoid_ce:  # the background's logit is not trained
        logits = logits[:, : predictor.num_classes]
    deltas = deltas_of_class(predictor, deltas, classes)
    boxes = torch.cat([x.tensor for x in rois])
    return Predictions(logits, predictor.box2box_transform.apply_deltas(deltas, boxes))
