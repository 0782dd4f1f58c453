"""Base class of all teachers: a frozen network, and its view of a batch."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from .class_map import ClassMap
from .families import DetectionQuality, PerInstanceLosses
from .placement import autocast
from .teacher_cache import TeacherCache

__all__ = ["TeacherBase", "TeacherView", "normalized_batch", "resampled", "round_up"]


@dataclass
class TeacherView:
    """Batch of N images, preprocessed for the teacher, and its feature maps.

    Attributes:
        images: images with the teacher's own normalization and padding.
        features: {level: (N, C, H, W)}, feature maps that cover at least the area of the student's;
            empty for a teacher without features.
        detections: detections of each image, in pixels of the student's input, if they are given
            with the batch; else None.
        keys: of the images in the teacher's cache; empty without one.
    """

    images: ImageList
    features: dict[str, Tensor]
    detections: list[Instances] | None = None
    keys: list[str] = field(default_factory=list)

    def __getitem__(self, index: slice | list[int]) -> "TeacherView":
        def of(x: list) -> list:
            return [x[n] for n in index] if isinstance(index, list) else x[index]

        images = ImageList(self.images.tensor[index], of(self.images.image_sizes))
        features = {level: x[index] for level, x in self.features.items()}
        detections = self.detections and of(self.detections)
        return TeacherView(images, features, detections, self.keys and of(self.keys))


class TeacherBase:
    """Frozen network in eval mode, run without gradient.

    It is not an ``nn.Module``: as an attribute of a student it stays out of the student's
    parameters, state dict, DDP and optimizer, and ``.train()`` does not change its mode.

    Attributes:
        detector: the network.
        cfg: config with the teacher's INPUT.FORMAT and DATASETS.TRAIN, for detectors also with all
            keys that Detectron2's test loader reads.
        name: key and file of the config, for messages.
        weights: path of the weights, for messages.
        levels: feature levels that can be imitated, finest first.
        has_heads: whether the network detects objects; otherwise there is no loss D and there are
            no predictions.
        has_features: whether there are feature maps; otherwise only predictions can be imitated.
        class_map: map from the classes of the training to the student's classes, which the detector
            has; None if it was trained on the student's.
        stays: whether the network keeps its device in training instead of moving to the student's.
        precision: precision of the forward passes, by autocast, or None for the student's. The
            weights are in float32, for evaluation, export and TEACHER.INHERIT.
        cache: of feature maps and losses per instance, or None.
    """

    has_heads: bool
    has_features = True
    levels: tuple[str, ...]
    class_map: ClassMap | None = None
    stays = False
    precision: torch.dtype | None = None
    cache: TeacherCache | None = None

    def __init__(self, detector: nn.Module, cfg: CfgNode, name: str, weights: str):
        self.detector = detector.eval()
        for parameter in detector.parameters():  # TorchScript has no requires_grad_
            parameter.requires_grad = False
        self.cfg = cfg
        self.name = name
        self.weights = weights

    def __deepcopy__(self, memo: dict) -> "TeacherBase":
        """The teacher itself: copies of a student share it, as nothing changes it."""
        return self

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each feature map."""
        raise NotImplementedError

    def view(
        self, batched_inputs: list[dict], padded_size: tuple[int, int], input_format: str
    ) -> TeacherView:
        """Feature maps of the raw batch.

        Args:
            batched_inputs: the standard input of a Detectron2 model, N dicts.
            padded_size: height and width to which the student pads the batch. The teacher's padding
                is the same or larger, at the right and at the bottom.
            input_format: channel order of the images, "BGR" or "RGB".

        Raises:
            AIDError: the teacher cannot process images of this size, or knows only detections and
                the batch has none.
        """
        raise NotImplementedError

    def per_instance_losses(
        self, view: TeacherView, targets: list[Instances], background: bool = True
    ) -> PerInstanceLosses:
        """Task losses of the teacher on each instance of a batch.

        The class component is 0 for instances of classes without a counterpart in the teacher.

        Args:
            view: output of :meth:`view`.
            targets: ground truth of each image.
            background: see :func:`~aid.modeling.families.per_instance_losses`.

        Returns:
            Losses on the device of the targets. Their ``predictions`` are on the teacher's, and
            None for a view with ``keys``, whose losses may come from the cache.
        """
        raise NotImplementedError

    def quality(self, view: TeacherView, targets: list[Instances]) -> DetectionQuality:
        """Score and IoU of the teacher's best detection of each instance of a batch.

        Args:
            view, targets: see :meth:`per_instance_losses`.

        Returns:
            Quality on the device of the targets.
        """
        raise NotImplementedError

    def detections(self, view: TeacherView) -> list[Instances]:
        """Detections of each image of a batch, in pixels of the student's input.

        Args:
            view: output of :meth:`view`.
        """
        raise NotImplementedError

    def has_class(self, targets: list[Instances]) -> Tensor | None:
        """Whether the teacher has the class of each instance of a batch, (G,), bool.

        None if it has all classes of the student.
        """
        return None

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        raise NotImplementedError

    def follow(self, device: torch.device) -> None:
        """Move the network to ``device``, unless it :attr:`stays`."""
        if not self.stays and self.device != device:
            self.detector.to(device)

    def autocast(self) -> AbstractContextManager[Any]:
        """Context in which the network runs in :attr:`precision`."""
        return autocast(self.device, self.precision)

    @property
    def num_parameters(self) -> int:
        """Number of parameters of the network."""
        return sum(p.numel() for p in self.detector.parameters())

    def _view(
        self, network: Callable[[Tensor], dict[str, Tensor]], images: ImageList
    ) -> TeacherView:
        """View of preprocessed images, with the feature maps that ``network`` computes.

        It runs in :attr:`precision`, if set, and its maps are then converted to float32. They are
        read from the :attr:`cache`, if there is one and it has them.
        """
        x, keys = images.tensor, []

        def compute(new: list[int]) -> list[dict[str, Tensor]]:
            features = network(x[new])
            return [{level: y[n] for level, y in features.items()} for n in range(len(new))]

        with self.autocast():
            if self.cache is None:
                features = network(x)
            else:
                keys = self.cache.keys(x)
                found = self.cache(keys, compute)
                features = {k: torch.stack([y[k].to(x.device) for y in found]) for k in found[0]}
        if self.precision is not None:
            features = {level: y.float() for level, y in features.items()}
        return TeacherView(images, features, keys=keys)

    def _images(self, batched_inputs: list[dict], input_format: str) -> list[Tensor]:
        """Raw images on the teacher's device, in its channel order."""
        images = [x["image"].to(self.device) for x in batched_inputs]
        return images if input_format == self.cfg.INPUT.FORMAT else [x.flip(0) for x in images]


def normalized_batch(
    images: list[Tensor], mean: Tensor, std: Tensor, size: tuple[int, int]
) -> ImageList:
    """Normalize and pad images.

    Args:
        images: N images (C, H, W).
        mean, std: (C, 1, 1), or more channels for gray images.
        size: padded height and width.
    """
    sizes = [(x.shape[-2], x.shape[-1]) for x in images]
    # Normalized before padding, as in Detectron2: the padding has the mean color. Normalization
    # expands the one channel of a gray image.
    channels = max(len(images[0]), len(mean))
    batch = images[0].new_zeros((len(images), channels, *size), dtype=torch.float32)
    for padded, image, (height, width) in zip(batch, images, sizes, strict=True):
        padded[:, :height, :width] = (image - mean) / std
    return ImageList(batch, sizes)


def resampled(features: Tensor, ratio: float, student: Tensor) -> Tensor:
    """Resample a feature map of the teacher at the student's cells.

    Both maps start at the same corner of the image. With equal strides the teacher's map is
    cropped; otherwise it is interpolated bilinearly at the centers of the student's cells.

    Args:
        features: (N, C, H, W).
        ratio: teacher's stride divided by the student's.
        student: (N, C', H', W'), the student's feature map.

    Returns:
        (N, C, H', W'), in float32 if the strides differ.
    """
    height, width = student.shape[2:]
    if ratio != 1:
        # The output has floor(ratio * side) cells: replicate the last cells if these are too few.
        below = max(0, math.ceil(height / ratio) - features.shape[2])
        right = max(0, math.ceil(width / ratio) - features.shape[3])
        features = F.pad(features.float(), (0, right, 0, below), mode="replicate")
        features = F.interpolate(features, scale_factor=ratio, mode="bilinear", align_corners=False)
    return features[..., :height, :width]


def round_up(size: tuple[int, int], divisibility: int) -> tuple[int, int]:
    """Smallest height and width, at least ``size``, that are multiples of ``divisibility``."""
    height, width = (-(-side // divisibility) * divisibility for side in size)
    return height, width
