"""Functions that the method needs of a detector; each family implements them in its own file.

Shape letters:

    N: images in the batch            G: ground-truth instances in the batch, image after image
    L: levels the detector's head reads    R: anchors of one image, all levels
    S: samples (anchors or RoIs)      K: classes
"""

from dataclasses import dataclass, replace
from functools import singledispatch

import torch
from detectron2.config import CfgNode
from detectron2.layers import ciou_loss, diou_loss
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from fvcore.nn import giou_loss, smooth_l1_loss
from torch import Tensor, nn

from ...data.ignore_regions import ignore_boxes
from ...utils.errors import AIDError
from ..class_map import ClassMap

__all__ = [
    "NUM_CLASSES_KEYS",
    "DetectionQuality",
    "PerInstanceLosses",
    "Targets",
    "best_detections",
    "box_losses",
    "detect",
    "loss_levels",
    "mean_by",
    "merge_classes",
    "num_classes",
    "num_classes_key",
    "per_instance_losses",
    "unmappable",
]

# {meta-architecture: the config key of its number of classes}, filled by the families.
NUM_CLASSES_KEYS: dict[type, str] = {}


@dataclass
class PerInstanceLosses:
    """Losses of a detector against the ground truth, one value per instance.

    Attributes:
        levels: names of the L feature levels, finest first.
        components: {name: (G,)}, for each component of the task loss ("cls", "box", for two-stage
            detectors also "rpn_cls" and "rpn_box", for FCOS also "ctr") the mean over the samples
            of an instance.
        background: {name: (N, L)}, for each classification component the mean over the negatives
            of an image and level; 0 where there is none.
        level_share: (G, L), share of an instance's anchors on each level; rows sum to 1.
        predictions: computed on the way and used again by prediction distillation: the output of a
            dense head, or the proposals of an RPN in each image, best first.
    """

    levels: tuple[str, ...]
    components: dict[str, Tensor]
    background: dict[str, Tensor]
    level_share: Tensor
    predictions: object = None

    def only(self, *names: str) -> "PerInstanceLosses":
        """Select components; without one that has a background, the background is NaN."""
        background = {k: v for k, v in self.background.items() if k in names}
        if not background:
            some = next(iter(self.background.values()))
            background = {names[0]: torch.full_like(some, torch.nan)}
        components = {k: v for k, v in self.components.items() if k in names}
        return replace(self, components=components, background=background)

    def by_image(self, counts: list[int]) -> list[dict[str, Tensor]]:
        """Tensors of each image by name, without predictions; see :meth:`from_images`.

        Args:
            counts: number of instances of each image.
        """
        of_instances = {"instance/" + k: x for k, x in self.components.items()}
        of_images = {"image/" + k: x for k, x in self.background.items()}
        parts = {k: x.split(counts) for k, x in {"level": self.level_share, **of_instances}.items()}
        parts |= {k: x.split(1) for k, x in of_images.items()}
        return [{k: x[n] for k, x in parts.items()} for n in range(len(counts))]

    @classmethod
    def from_images(
        cls, levels: tuple[str, ...], images: list[dict[str, Tensor]]
    ) -> "PerInstanceLosses":
        """Join the losses of images.

        Args:
            levels: see the attributes.
            images: N outputs of :meth:`by_image`.
        """
        whole = {k: torch.cat([x[k] for x in images]) for k in images[0]}
        components, background = (
            {k.removeprefix(start): x for k, x in whole.items() if k.startswith(start)}
            for start in ("instance/", "image/")
        )
        return cls(levels, components, background, whole["level"])


@singledispatch
def per_instance_losses(
    detector: nn.Module,
    images: ImageList,
    features: dict[str, Tensor],
    targets: list[Instances],
    background: bool = True,
) -> PerInstanceLosses:
    """Task loss of a detector on each ground-truth instance (D of AID, arXiv 2201.11097).

    The loss of an instance is the mean over *all* anchors and RoIs that the detector matches to it,
    without subsampling, running normalizers or random numbers; the detector's state does not
    change. Every instance has a loss, whatever it overlaps. No gradient is computed.

    Args:
        detector: a detector in eval mode. Its type chooses the implementation.
        images: batch of N images, in the detector's preprocessing.
        features: output of the detector's backbone on ``images``.
        targets: ground truth of each image, with ``gt_boxes`` and ``gt_classes``. Samples in the
            regions of a :class:`~aid.data.ignore_regions.GroundTruth` are no background.
        background: False if the background's loss is only needed for images without instances;
            for the other images the RoIs that match no instance are then skipped.

    Raises:
        AIDError: this type of detector is not supported.
    """
    raise _unsupported(detector)


@singledispatch
def loss_levels(detector: nn.Module) -> tuple[str, ...]:
    """Names of the feature levels that the detector's heads read, finest first."""
    raise _unsupported(detector)


def _unsupported(detector: nn.Module) -> AIDError:
    known = sorted(cls.__name__ for cls in per_instance_losses.registry if cls is not object)
    return AIDError(
        f"no loss per instance is defined for a {type(detector).__name__}: choose one of "
        f"{', '.join(known)}, or a subclass"
    )


@singledispatch
def detect(detector: nn.Module, images: ImageList, features: dict[str, Tensor]) -> list[Instances]:
    """Detections from features that are computed already, in pixels of the detector's input.

    Args:
        detector: in eval mode, with its own thresholds of score and suppression.
        images, features: see :func:`per_instance_losses`.

    Raises:
        AIDError: this type of detector is not supported.
    """
    raise AIDError(f"no detections can be had from the features of a {type(detector).__name__}")


@singledispatch
def merge_classes(detector: nn.Module, class_map: ClassMap) -> None:
    """Convert a teacher's detector to its student's classes, in place.

    Logits of the teacher's classes that are mapped to one class of the student are merged: under a
    softmax to the logarithm of their summed exponentials, so that probabilities add up, under
    sigmoids to the largest. Classes that are background to the student are merged with the
    background under a softmax, and dropped under sigmoids. A class without a counterpart has
    probability 0. The names of the layers that predict classes change in the state dict.

    Args:
        detector: a trained detector.
        class_map: map from its classes to the student's.

    Raises:
        AIDError: this type of detector is not supported.
    """
    raise unmappable(detector)


def unmappable(module: nn.Module) -> AIDError:
    """Error for a detector or component whose classes cannot be merged."""
    return AIDError(
        f"TEACHER.CLASS_MAP: the classes of a {type(module).__name__} cannot be mapped: choose a "
        "teacher with the student's classes"
    )


def num_classes(detector: nn.Module) -> int:
    """Number of foreground classes of a Detectron2 detector."""
    heads = getattr(detector, "roi_heads", detector)
    return heads.num_classes


def num_classes_key(cfg: CfgNode) -> str | None:
    """Key of the number of classes in the config of a detector; None for an unknown family."""
    if cfg.MODEL.META_ARCHITECTURE not in META_ARCH_REGISTRY:
        return None
    architecture = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
    keys = (NUM_CLASSES_KEYS[cls] for cls in architecture.__mro__ if cls in NUM_CLASSES_KEYS)
    return next(keys, None)


@dataclass
class DetectionQuality:
    """Best detection of each of G instances: of its class, with the largest IoU times score.

    Attributes:
        score, iou: (G,), in [0, 1]; both 0 for an instance that no detection of its class overlaps.
    """

    score: Tensor
    iou: Tensor


@torch.no_grad()
def best_detections(detections: list[Instances], targets: list[Instances]) -> DetectionQuality:
    """Best detection of each ground-truth instance.

    Args:
        detections: of each image, with ``pred_boxes``, ``scores`` and ``pred_classes``.
        targets: see :func:`per_instance_losses`.
    """
    qualities = []
    for found, truth in zip(detections, targets, strict=True):
        iou = pairwise_iou(truth.gt_boxes, found.pred_boxes)
        counts = (truth.gt_classes[:, None] == found.pred_classes) & (iou > 0)
        # Score and IoU of each instance with each detection, and a last one for no detection.
        scores = found.scores.expand_as(iou)
        pairs = nn.functional.pad(torch.stack([scores, iou]) * counts, (0, 1))
        best = pairs.prod(dim=0).argmax(dim=1)
        qualities.append(pairs.gather(2, best[:, None].expand(2, -1, 1))[:, :, 0])
    return DetectionQuality(*torch.cat(qualities, dim=1))


@dataclass
class Targets:
    """Ground truth of a batch in one piece, with a last row for samples that match no instance.

    Attributes:
        boxes: (G + 1, 4), XYXY in pixels of the detector's input.
        classes: (G + 1,).
        first: for each image the index of its first instance; G at the end.
        regions: for each image those that are neither object nor background.
    """

    boxes: Tensor
    classes: Tensor
    first: list[int]
    regions: list[Boxes]

    @classmethod
    def from_instances(cls, targets: list[Instances]) -> "Targets":
        """Concatenate the ground truth of the images of a batch."""
        boxes = [x.gt_boxes.tensor for x in targets]
        classes = [x.gt_classes for x in targets]
        first = [0]
        for x in targets:
            first.append(first[-1] + len(x))
        return cls(
            torch.cat([*boxes, _unit_box(boxes[0])]),
            torch.cat([*classes, classes[0].new_zeros(1)]),
            first,
            [ignore_boxes(x) for x in targets],
        )

    @property
    def background_index(self) -> int:
        """Index that stands for background in place of an instance: G."""
        return self.first[-1]

    def of_image(self, image: int) -> slice:
        """Indices of the instances of an image."""
        return slice(self.first[image], self.first[image + 1])


def _unit_box(like: Tensor) -> Tensor:
    """The box 0, 0, 1, 1 as (1, 4), made on the device of ``like``: a copy would wait for it."""
    return nn.functional.pad(like.new_ones(1, 2), (2, 0))


def mean_by(group: Tensor, losses: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """Mean loss and number of samples of each group, such as an instance.

    Args:
        group: (S,), in [0, num_groups]; samples of the group ``num_groups`` are left out.
        losses: (S,).

    Returns:
        mean (num_groups,), 0 for a group without samples, and count (num_groups,).
    """
    total = losses.new_zeros(num_groups + 1).index_add_(0, group, losses)
    count = losses.new_zeros(num_groups + 1).index_add_(0, group, torch.ones_like(losses))
    return (total / count.clamp(min=1))[:num_groups], count[:num_groups]


def box_losses(head: nn.Module, boxes: Tensor, deltas: Tensor, targets: Tensor) -> Tensor:
    """Detectron2's box regression loss, one value per sample instead of a sum.

    Args:
        head: the module that made the predictions (RPN, RetinaNet, FastRCNNOutputLayers), with its
            box encoding and the type of its loss.
        boxes, deltas, targets: (S, 4), the samples, the head's predictions and the ground truth.

    Returns:
        (S,), summed over coordinates; infinite for a sample without area, which has no encoding,
        and not finite where the prediction is not.
    """
    transform, beta = head.box2box_transform, head.smooth_l1_beta
    has_area = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    boxes = torch.where(has_area[:, None], boxes, _unit_box(boxes))
    if head.box_reg_loss_type == "smooth_l1":
        encoded = transform.get_deltas(boxes, targets)
        losses = smooth_l1_loss(deltas, encoded, beta=beta, reduction="none").sum(dim=1)
    else:
        iou_loss = {"giou": giou_loss, "diou": diou_loss, "ciou": ciou_loss}[head.box_reg_loss_type]
        decoded = transform.apply_deltas(deltas, boxes)
        finite = decoded.isfinite().all(dim=1)  # else these losses fail for all
        decoded = torch.where(finite[:, None], decoded, targets)
        losses = torch.where(finite, iou_loss(decoded, targets, reduction="none"), torch.inf)
    return torch.where(has_area, losses, torch.inf)
