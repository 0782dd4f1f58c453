"""Common code of the dense detectors RetinaNet, GFL and FCOS.

The anchor of a GFL's cell or of an FCOS's point is the only one there. Shape letters as in base.py.
"""

from collections.abc import Callable
from functools import singledispatch

import torch
from detectron2.structures import Boxes, ImageList, Instances
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor, nn

from ...utils.d2 import padding, transpose_dense_predictions
from ...utils.errors import AIDError
from ..class_map import ClassMap
from ..placement import autocast, to_device
from .anchors import Match, losses_per_instance, match_anchors
from .base import (
    NUM_CLASSES_KEYS,
    PerInstanceLosses,
    Targets,
    detect,
    loss_levels,
    merge_classes,
)
from .cross_head import cross_predictions
from .given import predict_given
from .ignore_regions import points_in_regions
from .merging import MaxOfGroups
from .predictions import (
    PairedPredictions,
    PredictionBatch,
    PredictionRequest,
    Predictions,
    check_comparable,
    paired_predictions,
    predicts_distributions,
)

__all__ = [
    "anchor_match",
    "check_dense",
    "choose_samples",
    "flatten_predictions",
    "focal_losses",
    "losses_at_points",
    "register_dense",
]


def register_dense(family: type, num_classes_key: str) -> None:
    """Register what does not differ between dense detectors.

    A family also defines :func:`anchor_match` and ``per_instance_losses``.

    Args:
        family: with ``head``, ``head_in_features`` and ``anchor_generator``.
        num_classes_key: config key of its number of classes.
    """
    NUM_CLASSES_KEYS[family] = num_classes_key
    loss_levels.register(family, lambda detector: tuple(detector.head_in_features))
    detect.register(family, _detect)
    merge_classes.register(family, _merge_classes)
    paired_predictions.register(family, _paired_predictions)
    predict_given.register(family, _predict_given)
    check_comparable.register(
        family, lambda teacher, student, _, loss: check_dense(teacher, student, family, loss)
    )


@singledispatch
def anchor_match(detector: nn.Module, anchors: list[Boxes]) -> Match:
    """The rule by which a dense detector matches the boxes of an image with its anchors.

    Args:
        detector: its type chooses the implementation.
        anchors: of each level, of one image (they are the same for all images).

    Raises:
        AIDError: this type of detector is not supported.
    """
    raise AIDError(f"no matching of anchors is defined for a {type(detector).__name__}")


def focal_losses(detector: nn.Module, truth: Targets, matched_gt: Tensor, logits: Tensor) -> Tensor:
    """Focal loss of each sample, summed over classes: (S,).

    Args:
        detector: with the focal loss's alpha and gamma.
        truth: ground truth of the batch.
        matched_gt: (S,), instance of each sample; ``truth.background_index`` for background.
        logits: (S, K).
    """
    one_hot = torch.zeros_like(logits).scatter_(1, truth.classes[matched_gt][:, None], 1.0)
    one_hot *= (matched_gt != truth.background_index)[:, None]
    return sigmoid_focal_loss(
        logits, one_hot, alpha=detector.focal_loss_alpha, gamma=detector.focal_loss_gamma
    ).sum(dim=1)


def flatten_predictions(detector: nn.Module, predictions: tuple[list[Tensor], ...]) -> list[Tensor]:
    """Output of a dense head, with all levels in one tensor.

    Returns:
        Logits (N, R, K), deltas (N, R, 4) or, of a GFL, (N, R, 4 * bins), and of an FCOS centerness
        (N, R, 1).
    """
    num_anchors = detector.anchor_generator.num_anchors[0]  # in a cell, the same on all levels
    dims = [output[0].shape[1] // num_anchors for output in predictions]
    per_level = transpose_dense_predictions(detector, predictions, dims)
    return [torch.cat(x, dim=1) for x in per_level]


def losses_at_points(
    detector: nn.Module,
    features: dict[str, Tensor],
    targets: list[Instances],
    sample_losses: Callable[..., dict[str, Tensor]],
) -> PerInstanceLosses:
    """Losses of a detector with one anchor in a cell; see :func:`per_instance_losses`.

    Args:
        detector: with ``head``, ``head_in_features`` and ``anchor_generator``.
        features, targets: see :func:`per_instance_losses`.
        sample_losses: function (detector, truth, matched_gt (S,), anchors (S, 4), outputs (S, ...))
            that returns losses (S,) by component, with the outputs of
            :func:`flatten_predictions`; ``truth.background_index`` in ``matched_gt`` stands for
            background.
    """
    truth = Targets.from_instances(targets)
    maps = [features[level] for level in detector.head_in_features]
    anchors, predictions = detector.anchor_generator(maps), detector.head(maps)
    outputs = [x.float() for x in flatten_predictions(detector, predictions)]
    boxes = Boxes.cat(anchors).tensor.expand(len(outputs[0]), -1, 4)
    samples = [x.flatten(0, 1) for x in (boxes, *outputs)]
    has_area = (truth.boxes[:, 2:] > truth.boxes[:, :2]).all(dim=1)

    def losses(matched_gt: Tensor, at: Tensor | slice) -> dict[str, Tensor]:
        result = sample_losses(detector, truth, matched_gt, *(x[at] for x in samples))
        # The loss of a ground-truth box without area is undefined.
        return {**result, "box": torch.where(has_area[matched_gt], result["box"], torch.inf)}

    match, levels = anchor_match(detector, anchors), loss_levels(detector)
    result = losses_per_instance(
        losses, match, anchors, truth, levels, in_regions=points_in_regions
    )
    result.predictions = predictions
    return result


def choose_samples(
    matched_gt: Tensor, background_index: int, scores: Tensor, min_score: float
) -> tuple[Tensor, Tensor]:
    """Choose the anchors to imitate: those of an instance and the teacher's own detections.

    The rest of the 10^5 anchors is background to both sides, as the task loss teaches already.

    Args:
        matched_gt: (N, R), instance of each anchor, or ``background_index``.
        scores: (N, R), the teacher's for its best class.
        min_score: score above which an anchor counts as detected by the teacher.

    Returns:
        Image (S,) and anchor (S,) of each sample, image after image.
    """
    chosen = (matched_gt != background_index) | (scores > min_score)
    image, anchor = chosen.nonzero(as_tuple=True)
    return image, anchor


def check_dense(
    teacher: nn.Module,
    student: nn.Module,
    family: type,
    loss: str,
    keys: str = "MODEL.ANCHOR_GENERATOR",
) -> None:
    """Check that two dense detectors have the same anchors.

    Args:
        family: type that the student has to be of.
        keys: config keys that define the anchors.
        teacher, student, loss: see :func:`check_comparable`.

    Raises:
        AIDError: family, levels, anchors or padding differ.
    """
    start = f"DISTILLATION.LOSSES: {loss} compares predictions anchor by anchor: "
    (square, divisibility), student_padding = padding(teacher.backbone), padding(student.backbone)
    if not isinstance(student, family):
        raise AIDError(
            f"{start}the teacher is a {type(teacher).__name__}, the student is a "
            f"{type(student).__name__}: choose a loss on features, or a {family.__name__} on both "
            "sides"
        )
    student_anchors, teacher_anchors = (_anchors_by_level(x) for x in (student, teacher))
    if list(student_anchors) != list(teacher_anchors):
        raise AIDError(
            f"{start}the teacher's heads read {', '.join(teacher_anchors)}, the student's "
            f"{', '.join(student_anchors)}: give both the same levels"
        )
    if square != student_padding[0] or student_padding[1] % divisibility:
        raise AIDError(
            f"{start}the teacher pads images to squares of {square} (0: none) and multiples of "
            f"{divisibility}, the student to {student_padding[0]} and {student_padding[1]}: choose "
            "a loss on features"
        )
    for level, anchors in student_anchors.items():
        if anchors != teacher_anchors[level]:
            raise AIDError(
                f"{start}on level {level} {_describe(teacher_anchors[level])} in the teacher, "
                f"{_describe(anchors)} in the student: give both the same {keys}"
            )


def _detect(detector: nn.Module, images: ImageList, features: dict[str, Tensor]) -> list[Instances]:
    maps = [features[level] for level in detector.head_in_features]
    detections = detector.forward_inference(images, maps, detector.head(maps))
    for instances in detections:
        instances.pred_boxes.clip(instances.image_size)
    return detections


def _paired_predictions(
    teacher: nn.Module, student: nn.Module, request: PredictionRequest, batch: PredictionBatch
) -> PairedPredictions:
    """Predictions for the anchors of :func:`choose_samples`; see :func:`paired_predictions`.

    The logits of an FCOS are those of its classes. Its centerness is not imitated, since the labels
    say exactly what it should be; it only multiplies the score by which samples are chosen. That
    product is taken without the root of Detectron2's inference, whose threshold of 0.2 is then
    0.04, about that of the other families.
    """
    truth = Targets.from_instances(batch.targets)
    with torch.no_grad(), autocast(teacher.device, batch.teacher_precision):
        features = [batch.teacher[level] for level in teacher.head_in_features]
        anchors = teacher.anchor_generator(features)
        matched_gt = match_anchors(anchor_match(teacher, anchors), anchors, truth).matched_gt
        outputs = batch.teacher_predictions or teacher.head(features)
        logits, deltas, *centerness = flatten_predictions(teacher, outputs)
        scores = logits.amax(dim=2).sigmoid()
        for x in centerness:
            scores = scores * x.squeeze(2).sigmoid()
        image, anchor = choose_samples(
            matched_gt, truth.background_index, scores, request.min_score
        )
        boxes = Boxes.cat(anchors).tensor[anchor]
        of_teacher = _predictions(teacher, logits[image, anchor], deltas[image, anchor], boxes)
    logits, deltas, *_ = flatten_predictions(student, batch.student_predictions)
    matched_gt = matched_gt[image, anchor]
    cross = None
    if request.cross_convs is not None:
        assert batch.student_branches is not None, "no branches were tapped"
        branches = to_device(batch.student_branches[request.cross_convs], teacher.device)
        # In the student's precision: gradients flow through it, and would underflow in float16.
        outputs = cross_predictions(teacher, features, branches, request.cross_convs)
        cross_logits, cross_deltas, *_ = flatten_predictions(teacher, outputs)
        cross = _predictions(
            teacher, cross_logits[image, anchor], cross_deltas[image, anchor], boxes
        )
    of_teacher, cross, matched_gt, image, anchor, boxes = to_device(
        (of_teacher, cross, matched_gt, image, anchor, boxes), student.device
    )
    return PairedPredictions(
        student=_predictions(student, logits[image, anchor], deltas[image, anchor], boxes),
        teacher=of_teacher,
        activation="sigmoid",
        matched_gt=matched_gt,
        background_index=truth.background_index,
        image=image,
        cross=cross,
    )


def _predict_given(
    student: nn.Module, batch: PredictionBatch, detections: Targets
) -> tuple[Predictions, Tensor]:
    """Predictions at the anchors that the student matches to detections."""
    anchors = student.anchor_generator([batch.student[k] for k in student.head_in_features])
    with torch.no_grad():
        matched = match_anchors(anchor_match(student, anchors), anchors, detections).matched_gt
    image, anchor = (matched != detections.background_index).nonzero(as_tuple=True)
    logits, deltas, *_ = flatten_predictions(student, batch.student_predictions)
    boxes = Boxes.cat(anchors).tensor[anchor]
    predictions = _predictions(student, logits[image, anchor], deltas[image, anchor], boxes)
    return predictions, matched[image, anchor]


def _predictions(
    detector: nn.Module, logits: Tensor, deltas: Tensor, anchors: Tensor
) -> Predictions:
    deltas = deltas.float()
    boxes = detector.box2box_transform.apply_deltas(deltas, anchors)
    distributions = deltas.unflatten(1, (4, -1)) if predicts_distributions(detector) else None
    return Predictions(logits.float(), boxes, distributions)


def _merge_classes(detector: nn.Module, class_map: ClassMap) -> None:
    """Merge the class logits of a dense head; see :func:`merge_classes`."""
    merge = MaxOfGroups(class_map.groups, len(class_map.teacher))
    detector.head.cls_score = nn.Sequential(detector.head.cls_score, merge)
    detector.num_classes = len(class_map.student)


def _anchors_by_level(detector: nn.Module) -> dict[str, tuple]:
    """{level: (stride, offset, anchors of a cell)}."""
    generator = detector.anchor_generator
    cells = [x.round(decimals=3).tolist() for x in generator.cell_anchors]
    offsets = [generator.offset] * len(cells)
    levels = loss_levels(detector)
    return dict(zip(levels, zip(generator.strides, offsets, cells, strict=True), strict=True))


def _describe(anchors: tuple) -> str:
    stride, offset, cells = anchors
    widths = ", ".join(f"{x1 - x0:.0f}x{y1 - y0:.0f}" for x0, y0, x1, y1 in cells)
    return f"stride {stride}, offset {offset:g} and anchors {widths}"
