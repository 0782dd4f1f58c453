"""GFL (Li et al., NeurIPS 2020, arXiv 2006.04388). Shape letters as in base.py; B: bins."""

from functools import partial

import torch
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from ...utils.errors import AIDError
from ..detectors.gfl import GFL, assign_cells
from ..detectors.gfl_losses import quality_focal_losses
from .anchors import Match
from .base import PerInstanceLosses, Targets, per_instance_losses
from .dense import anchor_match, check_dense, losses_at_points, register_dense
from .predictions import PredictionRequest, check_comparable, predicts_distributions

__all__ = ["match_cells"]

register_dense(GFL, "MODEL.GFL.NUM_CLASSES")


@anchor_match.register
def _(detector: GFL, anchors: list[Boxes]) -> Match:
    return partial(match_cells, detector, anchors)


@per_instance_losses.register
@torch.no_grad()
def gfl_losses(
    detector: GFL,
    images: ImageList,
    features: dict[str, Tensor],
    targets: list[Instances],
    background: bool = True,
) -> PerInstanceLosses:
    """Quality focal loss, and weighted GIoU and distribution losses; see
    :func:`per_instance_losses`.

    All cells of an instance have the same weight. In training boxes are weighted by the predicted
    score, which would hide the loss of a bad box with a low score. The target of the score is the
    IoU of the predicted box, as in training.
    """
    return losses_at_points(detector, features, targets, _sample_losses)


def _sample_losses(
    detector: GFL,
    truth: Targets,
    matched_gt: Tensor,
    boxes: Tensor,
    logits: Tensor,
    distributions: Tensor,
) -> dict[str, Tensor]:
    """Losses (S,) of cells; logits (S, K), distributions (S, 4 * B)."""
    gt_boxes, classes = truth.boxes[matched_gt], truth.classes[matched_gt]
    quality, giou, distribution = detector.box_losses(distributions, boxes, gt_boxes)
    quality = torch.where(matched_gt != truth.background_index, quality, 0.0)
    return {
        "cls": quality_focal_losses(logits, classes, quality, detector.quality_beta),
        "box": giou + distribution,
    }


def match_cells(detector: GFL, anchors: list[Boxes], boxes: Boxes) -> tuple[Tensor, Tensor, Tensor]:
    """A :data:`Match` of an image's boxes with cells, by ATSS; no cell is ignored.

    Args:
        detector: its ``topk`` is the number of candidates on a level.
        anchors: of each level.
        boxes: of an image.
    """
    matched_gt, best = assign_cells(boxes, anchors, detector.topk)
    return matched_gt, (matched_gt < len(boxes)).long(), best


@predicts_distributions.register
def _(detector: GFL) -> bool:
    return True


@check_comparable.register
def _(teacher: GFL, student: nn.Module, request: PredictionRequest, loss: str) -> None:
    keys = "MODEL.GFL.ANCHOR_SCALE and MODEL.ANCHOR_GENERATOR.OFFSET"
    check_dense(teacher, student, GFL, loss, keys)
    of_student, of_teacher = (x.box2box_transform.reg_max for x in (student, teacher))
    if request.distributions and of_student != of_teacher:
        raise AIDError(
            f"DISTILLATION.LOSSES: {loss} compares distributions bin by bin: MODEL.GFL.REG_MAX is "
            f"{of_teacher} in the teacher, {of_student} in the student: give both the same"
        )
