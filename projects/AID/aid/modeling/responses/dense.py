"""Answers of dense detectors about the same anchors: RetinaNet. Shape letters as in base.py.

R: anchors of one image, all levels
"""

from functools import partial

import torch
from detectron2.modeling import RetinaNet
from detectron2.structures import Boxes
from torch import Tensor, nn

from ...errors import AIDError
from ..instance_loss import loss_levels
from ..instance_loss.anchors import match_anchors, match_by_overlap
from ..instance_loss.base import Targets
from .base import Answer, Answers, Batch, Question, ask, check_comparable

__all__ = ["check_dense", "choose_samples"]


@check_comparable.register
def _(teacher: RetinaNet, student: nn.Module, question: Question, who: str) -> None:
    check_dense(teacher, student, RetinaNet, question, who)


@ask.register
def retinanet_answers(
    teacher: RetinaNet, student: RetinaNet, question: Question, batch: Batch
) -> Answers:
    """Answers about the anchors that :func:`choose_samples` chooses; see :func:`ask`."""
    truth = Targets.from_instances(batch.targets)
    with torch.no_grad():
        features = [batch.teacher[level] for level in teacher.head_in_features]
        anchors = teacher.anchor_generator(features)
        match = partial(match_by_overlap, teacher.anchor_matcher, Boxes.cat(anchors))
        owner = match_anchors(match, anchors, truth).owner
        predictions = batch.teacher_predictions or teacher.head(features)
        logits, deltas = _per_anchor(teacher, predictions)
        image, anchor = choose_samples(owner, truth.nobody, logits, question.min_score)
        boxes = Boxes.cat(anchors).tensor[anchor]
        theirs = _answer(teacher, logits[image, anchor], deltas[image, anchor], boxes)
    logits, deltas = _per_anchor(student, batch.student_predictions)
    owner = owner[image, anchor]
    return Answers(
        student=_answer(student, logits[image, anchor], deltas[image, anchor], boxes),
        teacher=theirs,
        activation="sigmoid",
        owner=owner,
        nobody=truth.nobody,
        image=image,
        is_truth=torch.zeros_like(owner, dtype=torch.bool),
    )


def _per_anchor(detector: RetinaNet, predictions: tuple) -> tuple[Tensor, Tensor]:
    """Logits (N, R, K) and deltas (N, R, 4) of what the head returns."""
    per_level = detector._transpose_dense_predictions(predictions, [detector.num_classes, 4])
    return tuple(torch.cat(x, dim=1) for x in per_level)


def _answer(detector: RetinaNet, logits: Tensor, deltas: Tensor, anchors: Tensor) -> Answer:
    boxes = detector.box2box_transform.apply_deltas(deltas.float(), anchors)
    return Answer(logits.float(), boxes)


def choose_samples(
    owner: Tensor, nobody: int, logits: Tensor, min_score: float
) -> tuple[Tensor, Tensor]:
    """The samples that both sides are asked about: those that an instance owns, and what else the
    teacher takes for an object.

    The rest of the 10^5 anchors is background to both, and the task loss says so already.

    Args:
        owner: (N, R), ``nobody`` where there is none.
        logits: (N, R, K), the teacher's.
        min_score: above which the teacher takes a sample for an object.

    Returns:
        Image (S,) and anchor (S,) of each sample, image after image.
    """
    scored = logits.amax(dim=2).sigmoid() > min_score
    return ((owner != nobody) | scored).nonzero(as_tuple=True)


def check_dense(
    teacher: nn.Module, student: nn.Module, family: type, question: Question, who: str
) -> None:
    """Check that two dense detectors have the same anchors (or points).

    Args:
        family: type that the student has to be of.
        teacher, student, question, who: see :func:`check_comparable`.

    Raises:
        AIDError: another family, other levels or other anchors; or the question is about the
            ground-truth boxes themselves, which a dense head cannot be asked about.
    """
    if question.truth:
        raise AIDError(
            f"DISTILLATION.LOSSES: {who} needs a Faster or Mask R-CNN on both sides, the teacher "
            f"is a {type(teacher).__name__}: take ResponseLoss, or choose another teacher"
        )
    start = f"DISTILLATION.LOSSES: {who} compares answers anchor by anchor: "
    if not isinstance(student, family):
        raise AIDError(
            f"{start}the teacher is a {type(teacher).__name__}, the student is a "
            f"{type(student).__name__}: choose a loss on features, or a {family.__name__} on both "
            "sides"
        )
    ours, theirs = (_anchors_by_level(x) for x in (student, teacher))
    if list(ours) != list(theirs):
        raise AIDError(
            f"{start}the teacher's heads read {', '.join(theirs)}, the student's "
            f"{', '.join(ours)}: give both the same levels"
        )
    for level in ours:
        if ours[level] != theirs[level]:
            raise AIDError(
                f"{start}on level {level} {_said(theirs[level])} in the teacher, "
                f"{_said(ours[level])} in the student: give both the same MODEL.ANCHOR_GENERATOR"
            )


def _anchors_by_level(detector: nn.Module) -> dict[str, tuple]:
    """{level: (stride, offset, anchors of a cell)}."""
    generator = detector.anchor_generator
    cells = [x.round(decimals=3).tolist() for x in generator.cell_anchors]
    offsets = [generator.offset] * len(cells)
    levels = loss_levels(detector)
    return dict(zip(levels, zip(generator.strides, offsets, cells, strict=True), strict=True))


def _said(anchors: tuple) -> str:
    stride, offset, cells = anchors
    widths = ", ".join(f"{x1 - x0:.0f}x{y1 - y0:.0f}" for x0, y0, x1, y1 in cells)
    return f"stride {stride}, offset {offset:g} and anchors {widths}"
