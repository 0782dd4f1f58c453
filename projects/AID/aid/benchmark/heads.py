"""The teacher's heads by themselves: what instance losses cannot do without."""

from functools import singledispatch

import torch
from detectron2.modeling import GeneralizedRCNN, RetinaNet
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.modeling.roi_heads import CascadeROIHeads
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from ..errors import AIDError
from ..modeling.gfl import GFL

__all__ = ["run_heads"]


@singledispatch
@torch.no_grad()
def run_heads(
    detector: nn.Module, images: ImageList, features: dict[str, Tensor], targets: list[Instances]
) -> None:
    """Run the heads on which the detector's losses are defined, in Detectron2's own code.

    Of a two-stage detector the RPN, its proposals, and the box heads on those and on the ground
    truth; of a dense one its head. Neither matching nor losses nor detections.

    Args:
        detector: in eval mode.
        images: its own preprocessed batch of N images.
        features: output of its backbone on it.
        targets: ground truth of each image, on the same device.

    Raises:
        AIDError: a detector of another family.
    """
    raise AIDError(f"the benchmark does not know the heads of a {type(detector).__name__}")


@run_heads.register
@torch.no_grad()
def _(detector: GeneralizedRCNN, images, features, targets) -> None:
    proposals, _ = detector.proposal_generator(images, features)
    rois = [
        Boxes.cat([found.proposal_boxes, truth.gt_boxes])
        for found, truth in zip(proposals, targets, strict=True)
    ]
    heads = detector.roi_heads
    pooled = [features[level] for level in heads.box_in_features]
    if not isinstance(heads, CascadeROIHeads):
        heads.box_predictor(heads.box_head(heads.box_pooler(pooled, rois)))
        return
    for head, predictor in zip(heads.box_head, heads.box_predictor, strict=True):
        _, deltas = predictor(head(heads.box_pooler(pooled, rois)))
        refined = predictor.box2box_transform.apply_deltas(
            deltas, torch.cat([x.tensor for x in rois])
        )
        rois = [Boxes(x) for x in refined.split([len(x) for x in rois])]
        for boxes, size in zip(rois, images.image_sizes, strict=True):
            boxes.clip(size)


@run_heads.register
@torch.no_grad()
def _(detector: RetinaNet | GFL | FCOS, images, features, targets) -> None:
    detector.head([features[level] for level in detector.head_in_features])
