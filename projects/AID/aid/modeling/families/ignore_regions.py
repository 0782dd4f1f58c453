"""Regions that are neither object nor background: samples in them are no negatives.

A sample in a region that matches no instance has neither a loss of the student nor a part in the
teacher's loss on the background. Samples that match an instance are not affected. Shape letters as
in base.py.
"""

from functools import singledispatch

import torch
from detectron2.modeling import GeneralizedRCNN, RetinaNet
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import CascadeROIHeads, ROIHeads
from detectron2.structures import Boxes, Instances, pairwise_ioa, pairwise_iou
from detectron2.structures.boxes import pairwise_point_box_distance
from torch import Tensor, nn

from ...data.ignore_regions import ignore_boxes
from ...utils.errors import AIDError
from ..detectors import FCOS, GFL

__all__ = ["boxes_in_regions", "points_in_regions", "respect_ignore_regions"]

# Share of its own area of which a box in a region has more inside.
MIN_SHARE = 0.5


def boxes_in_regions(boxes: Boxes, regions: Boxes) -> Tensor:
    """Whether more than half of the area of each box is inside of one region: (S,), bool."""
    return (pairwise_ioa(regions, boxes) > MIN_SHARE).any(dim=0)


def points_in_regions(boxes: Boxes, regions: Boxes) -> Tensor:
    """Whether the center of each box, which stands for a point, is in a region: (S,), bool.

    Used for FCOS, and for GFL, whose anchors only assign cells and are larger than many regions: in
    the size of configs/KITTI, 43 % of 958 DontCare regions hold more than half of none of them.
    """
    distances = pairwise_point_box_distance(boxes.get_centers(), regions)
    return (distances.amin(dim=2) > 0).any(dim=1)


@singledispatch
def respect_ignore_regions(detector: nn.Module) -> None:
    """Let a detector train without negatives in the regions of a :class:`GroundTruth`, in place.

    Losses and random numbers do not change in batches whose ground truth has no regions.

    Args:
        detector: its type chooses the implementation.

    Raises:
        AIDError: this type of detector is not supported.
    """
    raise _unsupported(detector)


def _unsupported(module: nn.Module) -> AIDError:
    return AIDError(
        f"INPUT.IGNORE_REGIONS is on, which a {type(module).__name__} does not support: turn it "
        "off, or choose another detector"
    )


@respect_ignore_regions.register
def _(detector: GeneralizedRCNN) -> None:
    generator, heads = detector.proposal_generator, detector.roi_heads
    for module, kind in ((generator, RPN), (heads, ROIHeads)):
        if module is not None and not isinstance(module, kind):
            raise _unsupported(module)
    if generator is not None:  # None with MODEL.LOAD_PROPOSALS
        _override(generator, _RPN)
    _override(heads, _CascadeROIHeads if isinstance(heads, CascadeROIHeads) else _ROIHeads)


@respect_ignore_regions.register
def _(detector: RetinaNet) -> None:
    _override(detector, _AnchorDetector)


@respect_ignore_regions.register(FCOS)
@respect_ignore_regions.register(GFL)
def _(detector: DenseDetector) -> None:
    _override(detector, _PointDetector)


def _override(module: nn.Module, overrides: type[nn.Module]) -> None:
    """Put the methods of a class before those of a module's own class, whose name it keeps."""
    kind = type(module)
    module.__class__ = type(kind.__name__, (overrides, kind), {"__module__": kind.__module__})


class _RPN(RPN):
    def label_and_sample_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        all_anchors = Boxes.cat(anchors)
        self._ignored = [boxes_in_regions(all_anchors, ignore_boxes(x)) for x in gt_instances]
        return super().label_and_sample_anchors(anchors, gt_instances)

    def _subsample_labels(self, label: Tensor) -> Tensor:
        """Called once for each image, in their order."""
        label[(label == 0) & self._ignored.pop(0)] = -1
        return super()._subsample_labels(label)


class _ROIHeads(ROIHeads):
    @torch.no_grad()
    def label_and_sample_proposals(
        self, proposals: list[Instances], targets: list[Instances]
    ) -> list[Instances]:
        remaining = []
        for x, truth in zip(proposals, targets, strict=True):
            _, label = self.proposal_matcher(pairwise_iou(truth.gt_boxes, x.proposal_boxes))
            ignored = (label == 0) & boxes_in_regions(x.proposal_boxes, ignore_boxes(truth))
            remaining.append(x[~ignored])
        return super().label_and_sample_proposals(remaining, targets)


class _CascadeROIHeads(_ROIHeads, CascadeROIHeads):
    @torch.no_grad()
    def _match_and_label_boxes(
        self, proposals: list[Instances], stage: int, targets: list[Instances]
    ) -> list[Instances]:
        proposals = super()._match_and_label_boxes(proposals, stage, targets)
        remaining = []
        for x, truth in zip(proposals, targets, strict=True):
            ignored = boxes_in_regions(x.proposal_boxes, ignore_boxes(truth))
            remaining.append(x[~((x.gt_classes == self.num_classes) & ignored)])
        return remaining


class _AnchorDetector(DenseDetector):
    in_regions = staticmethod(boxes_in_regions)

    @torch.no_grad()
    def label_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        labels, boxes = super().label_anchors(anchors, gt_instances)
        all_anchors = Boxes.cat(anchors)
        for label, truth in zip(labels, gt_instances, strict=True):
            ignored = self.in_regions(all_anchors, ignore_boxes(truth))
            label[(label == self.num_classes) & ignored] = -1
        return labels, boxes


class _PointDetector(_AnchorDetector):
    in_regions = staticmethod(points_in_regions)
