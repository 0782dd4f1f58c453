"""Instance losses of dense detectors: RetinaNet. Shape letters as in base.py."""

from functools import partial

import torch
from detectron2.modeling import RetinaNet
from detectron2.structures import ImageList, Instances
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor, nn

from .anchors import anchor_losses
from .base import InstanceLosses, Targets, instance_losses, loss_levels

__all__ = ["focal_losses"]


@loss_levels.register
def _(detector: RetinaNet) -> tuple[str, ...]:
    return tuple(detector.head_in_features)


@instance_losses.register
@torch.no_grad()
def retinanet_losses(
    detector: RetinaNet,
    images: ImageList,
    features: dict[str, Tensor],
    targets: list[Instances],
    background: bool = True,
) -> InstanceLosses:
    """Focal loss (summed over classes) and box loss of a RetinaNet; see :func:`instance_losses`."""
    truth = Targets.from_instances(targets)
    features = [features[level] for level in detector.head_in_features]
    anchors = detector.anchor_generator(features)
    predictions = detector.head(features)
    logits, deltas = (
        torch.cat(x, dim=1)
        for x in detector._transpose_dense_predictions(predictions, [detector.num_classes, 4])
    )  # (N, R, K) and (N, R, 4)

    focal = partial(focal_losses, detector, truth)
    losses = anchor_losses(detector, focal, logits, deltas, anchors, truth, loss_levels(detector))
    losses.predictions = predictions
    return losses


def focal_losses(detector: nn.Module, truth: Targets, owner: Tensor, logits: Tensor) -> Tensor:
    """Focal loss (S,) of logits (S, K) whose owners are (S,), summed over classes.

    Args:
        detector: with the focal loss's alpha and gamma.
        truth: ground truth of the batch; samples of ``truth.nobody`` are background.
        owner, logits: of the samples.
    """
    one_hot = torch.zeros_like(logits).scatter_(1, truth.classes[owner][:, None], 1.0)
    one_hot *= (owner != truth.nobody)[:, None]
    return sigmoid_focal_loss(
        logits, one_hot, alpha=detector.focal_loss_alpha, gamma=detector.focal_loss_gamma
    ).sum(dim=1)
