"""Answers of dense detectors about the same anchors: RetinaNet, GFL and FCOS.

The anchor of a GFL's cell or of an FCOS's point is the only one there. Shape letters as in base.py.

R: anchors of one image, all levels
"""

from functools import partial, singledispatch

import torch
from detectron2.modeling import RetinaNet
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.structures import Boxes
from torch import Tensor, nn

from ...errors import AIDError
from ..gfl import GFL
from ..instance_loss import loss_levels
from ..instance_loss.anchors import match_anchors, match_by_overlap
from ..instance_loss.base import Targets
from ..instance_loss.fcos import match_points
from ..instance_loss.gfl import match_cells
from .base import Answer, Answers, Batch, Question, ask, check_comparable, predicts_distributions
from .cross import cross_predictions

__all__ = ["check_dense", "choose_samples"]


@predicts_distributions.register
def _(detector: GFL) -> bool:
    return True


@check_comparable.register
def _(teacher: RetinaNet, student: nn.Module, question: Question, who: str) -> None:
    check_dense(teacher, student, RetinaNet, question, who)


@check_comparable.register
def _(teacher: FCOS, student: nn.Module, question: Question, who: str) -> None:
    check_dense(teacher, student, FCOS, question, who)


@check_comparable.register
def _(teacher: GFL, student: nn.Module, question: Question, who: str) -> None:
    keys = "MODEL.GFL.ANCHOR_SCALE and MODEL.ANCHOR_GENERATOR.OFFSET"
    check_dense(teacher, student, GFL, question, who, keys)
    ours, theirs = (x.box2box_transform.reg_max for x in (student, teacher))
    if question.distributions and ours != theirs:
        raise AIDError(
            f"DISTILLATION.LOSSES: {who} compares distributions bin by bin: MODEL.GFL.REG_MAX is "
            f"{theirs} in the teacher, {ours} in the student: give both the same"
        )


@ask.register
def dense_answers(
    teacher: RetinaNet | GFL | FCOS,
    student: RetinaNet | GFL | FCOS,
    question: Question,
    batch: Batch,
) -> Answers:
    """Answers about the anchors that :func:`choose_samples` chooses; see :func:`ask`.

    Of an FCOS the logits are those of the classes. Its centerness is no answer, since labels tell
    exactly what it should be; it only counts in where the teacher takes a point for an object. That
    is asked of class score times centerness, without the root that inference takes: Detectron2's
    threshold for the root, 0.2, is 0.04 of the product, about what other families have.
    """
    truth = Targets.from_instances(batch.targets)
    with torch.no_grad():
        features = [batch.teacher[level] for level in teacher.head_in_features]
        anchors = teacher.anchor_generator(features)
        owner = _owners(teacher, anchors, truth)
        predictions = batch.teacher_predictions or teacher.head(features)
        logits, deltas, *centerness = _per_anchor(teacher, predictions)
        scores = logits.amax(dim=2).sigmoid()
        for x in centerness:
            scores = scores * x.squeeze(2).sigmoid()
        image, anchor = choose_samples(owner, truth.nobody, scores, question.min_score)
        boxes = Boxes.cat(anchors).tensor[anchor]
        theirs = _answer(teacher, logits[image, anchor], deltas[image, anchor], boxes)
    logits, deltas, *_ = _per_anchor(student, batch.student_predictions)
    owner = owner[image, anchor]
    cross = None
    if question.cross_convs is not None:
        branches = batch.student_branches[question.cross_convs]
        predictions = cross_predictions(teacher, features, branches, question.cross_convs)
        cross = _answer(
            teacher, *(x[image, anchor] for x in _per_anchor(teacher, predictions)), boxes
        )
    return Answers(
        student=_answer(student, logits[image, anchor], deltas[image, anchor], boxes),
        teacher=theirs,
        activation="sigmoid",
        owner=owner,
        nobody=truth.nobody,
        image=image,
        is_truth=torch.zeros_like(owner, dtype=torch.bool),
        cross=cross,
    )


@singledispatch
def _owners(teacher: nn.Module, anchors: list[Boxes], truth: Targets) -> Tensor:
    """The instance (N, R) that the teacher matches each anchor to, or nobody."""


@_owners.register
def _(teacher: RetinaNet, anchors: list[Boxes], truth: Targets) -> Tensor:
    match = partial(match_by_overlap, teacher.anchor_matcher, Boxes.cat(anchors))
    return match_anchors(match, anchors, truth).owner


@_owners.register
def _(teacher: GFL, anchors: list[Boxes], truth: Targets) -> Tensor:
    return match_anchors(partial(match_cells, teacher, anchors), anchors, truth).owner


@_owners.register
def _(teacher: FCOS, anchors: list[Boxes], truth: Targets) -> Tensor:
    return match_anchors(partial(match_points, teacher, anchors), anchors, truth).owner


def _per_anchor(detector: nn.Module, predictions: tuple[list[Tensor], ...]) -> list[Tensor]:
    """What the head returns, all levels in one.

    Returns:
        Logits (N, R, K), deltas (N, R, 4), of distributions (N, R, 4 * bins), and of an FCOS
        centerness (N, R, 1).
    """
    num_anchors = detector.anchor_generator.num_anchors[0]  # in a cell, the same on all levels
    dims = [part[0].shape[1] // num_anchors for part in predictions]
    per_level = detector._transpose_dense_predictions(predictions, dims)
    return [torch.cat(x, dim=1) for x in per_level]


def _answer(detector: nn.Module, logits: Tensor, deltas: Tensor, anchors: Tensor) -> Answer:
    deltas = deltas.float()
    boxes = detector.box2box_transform.apply_deltas(deltas, anchors)
    distributions = deltas.unflatten(1, (4, -1)) if predicts_distributions(detector) else None
    return Answer(logits.float(), boxes, distributions)


def choose_samples(
    owner: Tensor, nobody: int, scores: Tensor, min_score: float
) -> tuple[Tensor, Tensor]:
    """The samples that both sides are asked about: those that an instance owns, and what else the
    teacher takes for an object.

    The rest of the 10^5 anchors is background to both, and the task loss says so already.

    Args:
        owner: (N, R), ``nobody`` where there is none.
        scores: (N, R), the teacher's for its best class.
        min_score: above which the teacher takes a sample for an object.

    Returns:
        Image (S,) and anchor (S,) of each sample, image after image.
    """
    return ((owner != nobody) | (scores > min_score)).nonzero(as_tuple=True)


def check_dense(
    teacher: nn.Module,
    student: nn.Module,
    family: type,
    question: Question,
    who: str,
    keys: str = "MODEL.ANCHOR_GENERATOR",
) -> None:
    """Check that two dense detectors have the same anchors.

    Args:
        family: type that the student has to be of.
        keys: of the config, that say what the anchors are.
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
                f"{_said(ours[level])} in the student: give both the same {keys}"
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
