"""The heads of a teacher alone, in Detectron2's own code."""

import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.roi_heads import CascadeROIHeads
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from aid.modeling.families.two_stage import clipped, stages_of
from aid.utils.errors import AIDError

__all__ = ["run_heads"]


@torch.no_grad()
def run_heads(
    detector: nn.Module, images: ImageList, features: dict[str, Tensor], targets: list[Instances]
) -> None:
    """Run the heads that per-instance losses need, without matching, losses and detections.

    Two-stage detectors run the RPN, and the box heads on its proposals and the ground-truth boxes;
    dense detectors run their head.

    Args:
        detector, images, features, targets: see :func:`~aid.modeling.families.per_instance_losses`.

    Raises:
        AIDError: this type of detector is not supported.
    """
    if not isinstance(detector, GeneralizedRCNN):
        if not hasattr(detector, "head_in_features"):
            raise AIDError(f"the benchmark does not know the heads of a {type(detector).__name__}")
        detector.head([features[level] for level in detector.head_in_features])
        return
    proposals, _ = detector.proposal_generator(images, features)
    rois = [
        Boxes.cat([of_image.proposal_boxes, truth.gt_boxes])
        for of_image, truth in zip(proposals, targets, strict=True)
    ]
    heads = detector.roi_heads
    pooled = [features[level] for level in heads.box_in_features]
    for box_head, predictor, _ in stages_of(heads):
        _, deltas = predictor(box_head(heads.box_pooler(pooled, rois)))
        if isinstance(heads, CascadeROIHeads):
            boxes = torch.cat([x.tensor for x in rois])
            refined = predictor.box2box_transform.apply_deltas(deltas, boxes)
            rois = clipped(refined, rois, images.image_sizes)
