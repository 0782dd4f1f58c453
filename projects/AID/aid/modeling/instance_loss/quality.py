"""How well a detector finds each ground-truth instance."""

from dataclasses import dataclass
from functools import singledispatch

import torch
from detectron2.modeling import GeneralizedRCNN, RetinaNet
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.structures import ImageList, Instances, pairwise_iou
from torch import Tensor, nn

from ...errors import AIDError
from ..gfl import GFL

__all__ = ["DetectionQuality", "detection_quality"]


@dataclass
class DetectionQuality:
    """The best detection of each of G instances: of its class, with the largest IoU times score.

    Attributes:
        score, iou: (G,), in [0, 1]; both 0 for an instance that no detection of its class overlaps.
    """

    score: Tensor
    iou: Tensor


@torch.no_grad()
def detection_quality(
    detector: nn.Module, images: ImageList, features: dict[str, Tensor], targets: list[Instances]
) -> DetectionQuality:
    """The best detection of each instance.

    Args:
        detector: in eval mode, with its own thresholds of score and suppression.
        images, features, targets: see :func:`~aid.modeling.instance_loss.instance_losses`.

    Raises:
        AIDError: no implementation for this type of detector.
    """
    qualities = []
    for found, truth in zip(detect(detector, images, features), targets, strict=True):
        iou = pairwise_iou(truth.gt_boxes, found.pred_boxes)
        counts = (truth.gt_classes[:, None] == found.pred_classes) & (iou > 0)
        # Score and IoU of each instance with each detection, and a last one for none at all.
        pairs = nn.functional.pad(torch.stack([found.scores.expand_as(iou), iou]) * counts, (0, 1))
        best = pairs.prod(dim=0).argmax(dim=1)
        qualities.append(pairs.gather(2, best[:, None].expand(2, -1, 1))[:, :, 0])
    return DetectionQuality(*torch.cat(qualities, dim=1))


@singledispatch
def detect(detector: nn.Module, images: ImageList, features: dict[str, Tensor]) -> list[Instances]:
    """Detections on a batch whose features are known, in pixels of the detector's input."""
    raise AIDError(f"no detections can be had from the features of a {type(detector).__name__}")


@detect.register
def _(detector: GeneralizedRCNN, images: ImageList, features: dict[str, Tensor]):
    proposals, _ = detector.proposal_generator(images, features)
    return detector.roi_heads(images, features, proposals)[0]


@detect.register
def _(detector: RetinaNet | GFL | FCOS, images: ImageList, features: dict[str, Tensor]):
    features = [features[level] for level in detector.head_in_features]
    found = detector.forward_inference(images, features, detector.head(features))
    for instances in found:
        instances.pred_boxes.clip(instances.image_size)
    return found
