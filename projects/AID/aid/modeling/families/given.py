"""Detectors of which only detections are given, with each batch.

Shape letters as in predictions.py, and D: detections of the batch, image after image.
"""

from functools import singledispatch

import torch
import torch.nn.functional as F
from detectron2.modeling.roi_heads import CascadeROIHeads
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor, nn

from ...utils.errors import AIDError
from .base import Targets, num_classes
from .merging import NEVER
from .predictions import (
    PairedPredictions,
    PredictionBatch,
    PredictionRequest,
    Predictions,
    check_comparable,
    paired_predictions,
)

__all__ = ["GivenDetections", "predict_given", "soft_logits"]

# Least IoU of a detection with an instance of its class that it is a detection of.
MIN_IOU = 0.5


class GivenDetections(nn.Module):
    """Stand-in for a detector of which only detections are given, with each batch.

    Attributes:
        num_classes: number of foreground classes.
    """

    def __init__(self, num_classes: int):
        super().__init__()
        self.num_classes = num_classes


@singledispatch
def predict_given(
    student: nn.Module, batch: PredictionBatch, detections: Targets
) -> tuple[Predictions, Tensor]:
    """Predictions of a student where another detector has detections, with gradient.

    A two-stage detector predicts for RoIs at the detected boxes, a dense one at the anchors that
    its own rule matches to them.

    Args:
        student: its type chooses the implementation.
        batch: features and head outputs of the student.
        detections: boxes and classes in place of ground truth.

    Returns:
        Predictions for S samples, and the detection (S,) of each, in [0, D).

    Raises:
        AIDError: this type of student is not supported.
    """
    raise AIDError(f"a {type(student).__name__} cannot imitate given detections")


@check_comparable.register
def _(teacher: GivenDetections, student: nn.Module, request: PredictionRequest, loss: str) -> None:
    is_known = predict_given.dispatch(type(student)) is not predict_given.dispatch(object)
    heads = getattr(student, "roi_heads", student)
    # The stages of a cascade predict separately.
    if not is_known or isinstance(heads, CascadeROIHeads):
        raise AIDError(
            f"DISTILLATION.LOSSES: {loss} imitates TEACHER.DETECTIONS in a Faster or Mask R-CNN, "
            f"RetinaNet, GFL or FCOS, the student is a {type(heads).__name__}: choose another one"
        )
    if request.num_proposals == 0:
        raise AIDError(
            f"DISTILLATION.RESPONSE.NUM_ROIS is 0, with which {loss} imitates none of "
            "TEACHER.DETECTIONS: raise it"
        )


@paired_predictions.register
def given_predictions(
    teacher: GivenDetections, student: nn.Module, request: PredictionRequest, batch: PredictionBatch
) -> PairedPredictions:
    """Given detections, and the student's predictions there; see :func:`paired_predictions`.

    Of each image the ``num_proposals`` best detections with a score above ``min_score`` count. A
    detection is matched to the instance of its class with which it has the largest IoU, if that
    is at least :data:`MIN_IOU`.
    """
    assert batch.detections is not None
    found = [_best(x, request).to(student.device) for x in batch.detections]
    truth = Targets.from_instances([x.to(student.device) for x in batch.targets])
    of_teacher = Targets.from_instances([_as_targets(x) for x in found])
    of_student, index = predict_given(student, batch, of_teacher)
    matched_gt = _matched_gt(of_teacher, truth)
    image = torch.cat([x.pred_classes.new_full((len(x),), i) for i, x in enumerate(found)])
    scores = torch.cat([x.scores for x in found])
    is_softmax = of_student.logits.shape[1] > num_classes(student)
    logits = soft_logits(scores[index], of_teacher.classes[index], num_classes(student), is_softmax)
    return PairedPredictions(
        student=of_student,
        teacher=Predictions(logits, of_teacher.boxes[index]),
        activation="softmax" if is_softmax else "sigmoid",
        matched_gt=matched_gt[index],
        background_index=truth.background_index,
        image=image[index],
    )


def soft_logits(scores: Tensor, classes: Tensor, num_classes: int, is_softmax: bool) -> Tensor:
    """Logits of the classes for which a softmax or sigmoids give the scores of detections.

    The class of a detection has its score as probability. Under a softmax the background has the
    rest. All other probabilities are 0.

    Args:
        scores: (S,), in [0, 1].
        classes: (S,), in [0, num_classes).
        num_classes: without the background.
        is_softmax: whether there is a background class, the last one.

    Returns:
        (S, num_classes), one more under a softmax. Finite, also for scores of 0 and 1.
    """
    logits = scores.new_full((len(scores), num_classes + is_softmax), NEVER)
    of_class = scores.log() if is_softmax else scores.logit()
    logits.scatter_(1, classes[:, None], of_class[:, None])
    if is_softmax:
        logits[:, -1] = (1 - scores).log()
    return logits.clamp(NEVER, -NEVER)


def _best(detections: Instances, request: PredictionRequest) -> Instances:
    """The best detections of an image, at most as many and at least as good as requested."""
    chosen = detections[detections.scores > request.min_score]
    order = chosen.scores.argsort(descending=True, stable=True)
    return chosen[order[: request.num_proposals]]


def _as_targets(detections: Instances) -> Instances:
    fields = {"gt_boxes": detections.pred_boxes, "gt_classes": detections.pred_classes}
    return Instances(detections.image_size, **fields)


def _matched_gt(detections: Targets, truth: Targets) -> Tensor:
    """Instance (D,) of each detection, or the background index."""
    matched = []
    for image in range(len(truth.first) - 1):
        found, known = detections.of_image(image), truth.of_image(image)
        iou = pairwise_iou(Boxes(truth.boxes[known]), Boxes(detections.boxes[found]))
        iou = iou * (truth.classes[known][:, None] == detections.classes[found])
        # The last row is for images without instances.
        best, index = F.pad(iou, (0, 0, 0, 1)).max(dim=0)
        matched.append(torch.where(best >= MIN_IOU, index + known.start, truth.background_index))
    return torch.cat(matched)
