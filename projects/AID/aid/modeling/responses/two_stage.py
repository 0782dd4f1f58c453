"""Answers of Faster and Mask R-CNN about the same RoIs. Shape letters as in base.py."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.roi_heads import CascadeROIHeads, StandardROIHeads
from detectron2.structures import Boxes
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...errors import AIDError
from ..instance_loss.base import Targets
from ..instance_loss.two_stage import deltas_of_class, match_rois
from .base import Answer, Answers, Batch, Question, ask, check_comparable

__all__ = []


@check_comparable.register
def _(teacher: GeneralizedRCNN, student: nn.Module, question: Question, who: str) -> None:
    for whose, detector in (("teacher", teacher), ("student", student)):
        heads = getattr(detector, "roi_heads", None)
        # A cascade's stages have an answer each.
        if not isinstance(heads, StandardROIHeads) or isinstance(heads, CascadeROIHeads):
            kind = type(detector if heads is None else heads).__name__
            raise AIDError(
                f"DISTILLATION.LOSSES: {who} needs a Faster or Mask R-CNN on both sides, the "
                f"{whose} is a {kind}: leave the loss out, or choose another {whose}"
            )
    ours, theirs = (x.roi_heads.box_predictor.use_sigmoid_ce for x in (student, teacher))
    if ours != theirs:
        raise AIDError(
            f"DISTILLATION.LOSSES: {who} needs one kind of class logits: "
            f"MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE is {theirs} in the teacher, {ours} in the student"
        )


@ask.register
def generalized_rcnn_answers(
    teacher: GeneralizedRCNN, student: GeneralizedRCNN, question: Question, batch: Batch
) -> Answers:
    """Answers about the ground-truth boxes and the teacher's best proposals; see :func:`ask`.

    Both sides pool the same RoIs from their own features. The ground-truth boxes are the last RoIs
    of their image.
    """
    truth = Targets.from_instances(batch.targets)
    with torch.no_grad():
        proposals = _proposals(teacher, question.num_proposals, batch)
        of_image = [Boxes(truth.boxes[truth.of_image(i)]) for i in range(len(proposals))]
        rois = [Boxes.cat(x) for x in zip(proposals, of_image, strict=True)]
        rois, owner, _ = match_rois(teacher.roi_heads.proposal_matcher, rois, truth, True)
        theirs = _answer(teacher, batch.teacher, rois, truth.classes[owner])
    with _without_memory(student.roi_heads.box_head):
        ours = _answer(student, batch.student, rois, truth.classes[owner])
    image = [owner.new_full((len(x),), i) for i, x in enumerate(rois)]
    is_truth = [
        torch.arange(len(x), device=owner.device) >= len(found)
        for found, x in zip(proposals, rois, strict=True)
    ]
    return Answers(
        student=ours,
        teacher=theirs,
        activation="sigmoid" if teacher.roi_heads.box_predictor.use_sigmoid_ce else "softmax",
        owner=owner,
        nobody=truth.nobody,
        image=torch.cat(image),
        is_truth=torch.cat(is_truth),
    )


def _proposals(teacher: GeneralizedRCNN, number: int, batch: Batch) -> list[Boxes]:
    """The teacher's best proposals in each image, in the order of their scores."""
    if number == 0:  # its RPN need not run
        return [Boxes(x.gt_boxes.tensor[:0]) for x in batch.targets]
    boxes = batch.teacher_predictions
    if boxes is None:
        found, _ = teacher.proposal_generator(batch.images, batch.teacher)
        boxes = [x.proposal_boxes for x in found]
    return [x[:number] for x in boxes]


@contextmanager
def _without_memory(head: nn.Module) -> Iterator[None]:
    """Running statistics stay those of the RoIs that the student trains on, as without answers."""
    momenta = {x: x.momentum for x in head.modules() if isinstance(x, _BatchNorm)}
    try:
        for norm in momenta:
            norm.momentum = 0.0
        yield
    finally:
        for norm, momentum in momenta.items():
            norm.momentum = momentum


def _answer(
    detector: GeneralizedRCNN, features: dict[str, Tensor], rois: list[Boxes], classes: Tensor
) -> Answer:
    """What the box head says about RoIs, with the boxes of the given classes (S,)."""
    heads = detector.roi_heads
    predictor = heads.box_predictor
    pooled = heads.box_pooler([features[level] for level in heads.box_in_features], rois)
    logits, deltas = (x.float() for x in predictor(heads.box_head(pooled)))
    if predictor.use_sigmoid_ce:  # the background's logit is not trained
        logits = logits[:, : predictor.num_classes]
    deltas = deltas_of_class(predictor, deltas, classes)
    boxes = torch.cat([x.tensor for x in rois])
    return Answer(logits, predictor.box2box_transform.apply_deltas(deltas, boxes))
