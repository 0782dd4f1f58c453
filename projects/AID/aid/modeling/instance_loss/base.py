"""What an instance loss is, for every detector family.

Shape letters:

    N: images in the batch            G: ground-truth instances in the batch, image after image
    L: levels the detector's head reads    R: anchors of one image, all levels
    S: samples (anchors or RoIs)      K: classes
"""

from dataclasses import dataclass, replace
from functools import singledispatch

import torch
from detectron2.layers import ciou_loss, diou_loss
from detectron2.structures import ImageList, Instances
from fvcore.nn import giou_loss, smooth_l1_loss
from torch import Tensor, nn

from ...errors import AIDError

__all__ = ["InstanceLosses", "Targets", "box_losses", "instance_losses", "loss_levels", "mean_by"]


@dataclass
class InstanceLosses:
    """The teacher's losses against the ground truth, undivided and unsummed.

    Attributes:
        levels: names of the L feature levels, finest first.
        parts: for each part of the task loss ("cls", "box", for two-stage detectors also "rpn_cls"
            and "rpn_box", for FCOS also "ctr") a tensor (G,): the mean of that loss over the
            samples of an instance.
        background: for each classification part a tensor (N, L): the mean over the negatives of an
            image and level, 0 where there is none.
        level_share: (G, L), the share of an instance's anchors on each level; rows sum to 1.
        predictions: what was predicted on the way, for whoever needs it too: the output of a dense
            head, or the boxes that an RPN proposes in each image, best first.
    """

    levels: tuple[str, ...]
    parts: dict[str, Tensor]
    background: dict[str, Tensor]
    level_share: Tensor
    predictions: object = None

    def only(self, *names: str) -> "InstanceLosses":
        """These parts alone; a part without background has NaN there, which counts nowhere."""
        background = {k: v for k, v in self.background.items() if k in names}
        if not background:
            some = next(iter(self.background.values()))
            background = {names[0]: torch.full_like(some, torch.nan)}
        parts = {k: v for k, v in self.parts.items() if k in names}
        return replace(self, parts=parts, background=background)


@singledispatch
def instance_losses(
    detector: nn.Module,
    images: ImageList,
    features: dict[str, Tensor],
    targets: list[Instances],
    background: bool = True,
) -> InstanceLosses:
    """The detector's task loss on each ground-truth instance (D of AID, arXiv 2201.11097).

    An instance's loss is the mean over *all* anchors and RoIs that the detector matches to it: no
    subsampling, no normaliser that outlives the call, no change of the detector's state, no random
    numbers. Every instance has a loss, whatever it overlaps. Nothing here needs a gradient.

    Args:
        detector: a detector in eval mode. Its type chooses the implementation.
        images: the detector's own preprocessed batch of N images.
        features: output of the detector's backbone on it.
        targets: ground truth of each image, with ``gt_boxes`` and ``gt_classes``.
        background: False where the background's loss is wanted only of images without instances:
            of the others it then lacks what would cost extra, the RoIs that belong to nobody.

    Raises:
        AIDError: no implementation for this type of detector.
    """
    raise _unsupported(detector)


@singledispatch
def loss_levels(detector: nn.Module) -> tuple[str, ...]:
    """Names of the feature levels that the detector's heads read, finest first."""
    raise _unsupported(detector)


def _unsupported(detector: nn.Module) -> AIDError:
    known = sorted(cls.__name__ for cls in instance_losses.registry if cls is not object)
    return AIDError(
        f"TEACHER.CONFIG_FILE: no instance loss is defined for a {type(detector).__name__}; "
        f"teachers can be {', '.join(known)} and their subclasses"
    )


@dataclass
class Targets:
    """Ground truth of a batch in one piece, with a last row that stands for nobody.

    Attributes:
        boxes: (G + 1, 4), XYXY in pixels of the detector's input.
        classes: (G + 1,).
        first: for each image the index of its first instance; G at the end.
    """

    boxes: Tensor
    classes: Tensor
    first: list[int]

    @classmethod
    def from_instances(cls, targets: list[Instances]) -> "Targets":
        boxes = [x.gt_boxes.tensor for x in targets]
        classes = [x.gt_classes for x in targets]
        first = [0]
        for x in targets:
            first.append(first[-1] + len(x))
        return cls(
            torch.cat([*boxes, boxes[0].new_tensor([[0.0, 0.0, 1.0, 1.0]])]),
            torch.cat([*classes, classes[0].new_zeros(1)]),
            first,
        )

    @property
    def nobody(self) -> int:
        return self.first[-1]

    def of_image(self, image: int) -> slice:
        return slice(self.first[image], self.first[image + 1])


def mean_by(owner: Tensor, losses: Tensor, num_owners: int) -> tuple[Tensor, Tensor]:
    """Mean loss and number of samples of each owner.

    Args:
        owner: (S,), in [0, num_owners]; samples of the owner ``num_owners`` count nowhere.
        losses: (S,).

    Returns:
        mean (num_owners,), 0 for an owner without samples, and count (num_owners,).
    """
    total = losses.new_zeros(num_owners + 1).index_add_(0, owner, losses)
    count = losses.new_zeros(num_owners + 1).index_add_(0, owner, torch.ones_like(losses))
    return (total / count.clamp(min=1))[:num_owners], count[:num_owners]


def box_losses(head: nn.Module, boxes: Tensor, deltas: Tensor, targets: Tensor) -> Tensor:
    """Detectron2's box regression loss, one value per sample instead of a sum.

    Args:
        head: whatever made the predictions (RPN, RetinaNet, FastRCNNOutputLayers): it says how
            boxes are encoded and which loss it was trained with.
        boxes, deltas, targets: (S, 4), the samples, the head's predictions and the ground truth.

    Returns:
        (S,), summed over coordinates; infinite for a sample without area, which has no encoding.
        Not finite where the prediction is not.
    """
    transform, beta = head.box2box_transform, head.smooth_l1_beta
    has_area = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    boxes = torch.where(has_area[:, None], boxes, boxes.new_tensor([0.0, 0.0, 1.0, 1.0]))
    if head.box_reg_loss_type == "smooth_l1":
        encoded = transform.get_deltas(boxes, targets)
        losses = smooth_l1_loss(deltas, encoded, beta=beta, reduction="none").sum(dim=1)
    else:
        iou_loss = {"giou": giou_loss, "diou": diou_loss, "ciou": ciou_loss}[head.box_reg_loss_type]
        found = transform.apply_deltas(deltas, boxes)
        finite = found.isfinite().all(dim=1)  # else these losses fail for all
        losses = iou_loss(torch.where(finite[:, None], found, targets), targets, reduction="none")
        losses = torch.where(finite, losses, torch.inf)
    return torch.where(has_area, losses, torch.inf)
