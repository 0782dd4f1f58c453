"""Feature teachers: networks without heads, such as the backbone of a foundation model."""

import importlib
import math
import os
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.structures import Instances
from torch import Tensor, nn

from ..checkpoint import StrictCheckpointer
from ..config import PYTHON, clear_program_errors
from ..utils.errors import AIDError
from .families import PerInstanceLosses
from .teacher_base import TeacherBase, TeacherView, normalized_batch, round_up

__all__ = ["FeatureTeacher", "load_feature_teacher"]

# ImageNet's mean and deviation in RGB, for pixels of 0 to 255.
IMAGENET_MEAN = (123.675, 116.280, 103.530)
IMAGENET_STD = (58.395, 57.120, 57.375)

# Height and width of the image on which strides are measured: multiples of 14 and 64.
PROBE = (448, 896)


class FeatureTeacher(TeacherBase):
    """Frozen network that maps images (N, 3, H, W) to feature maps; see :class:`TeacherBase`.

    Attributes:
        detector: the network.
        levels: student's levels on which its maps are imitated, smallest stride first.
    """

    has_heads = False

    def __init__(
        self,
        network: nn.Module,
        features: Sequence[str] = (),
        *,
        pixel_mean: Sequence[float] = IMAGENET_MEAN,
        pixel_std: Sequence[float] = IMAGENET_STD,
        input_format: str = "RGB",
        device: torch.device | str = "cpu",
        name: str = "no file",
        weights: str = "",
    ):
        """
        Args:
            network: network whose output is a map (N, C, H, W), or a list, tuple or dict of maps.
            features: see TEACHER.FEATURES in config/keys.py.
            pixel_mean, pixel_std: normalization of the channels, for pixels from 0 to 255.
            input_format: channel order of the network's input, "RGB" or "BGR".
            device: device of the network.
            name, weights: see the attributes.

        Raises:
            AIDError: the network fails on an image, has no such maps or maps with NaN or infinity,
                or the normalization is invalid.
        """
        if len(pixel_mean) != len(pixel_std) or not all(0 < x < math.inf for x in pixel_std):
            raise AIDError(
                f"TEACHER.PIXEL_MEAN is {list(pixel_mean)}, TEACHER.PIXEL_STD {list(pixel_std)}: "
                "give both a number for each channel, above 0 for PIXEL_STD"
            )
        cfg = get_cfg()
        cfg.INPUT.FORMAT, cfg.INPUT.MIN_SIZE_TEST = input_format, 0
        super().__init__(network.to(device), cfg, name, weights)
        self._device = torch.device(device)
        channels = (len(pixel_mean), 1, 1)
        self._mean, self._std = (
            torch.tensor(x, device=device).view(channels) for x in (pixel_mean, pixel_std)
        )
        with torch.no_grad():
            image = torch.zeros(1, len(pixel_mean), *PROBE, device=device)
            self._sources = _sources(features, self._outputs(image), name)
            maps = self._maps(image)
        shapes = {level: self._shape(level, x) for level, x in maps.items()}
        self._shapes = dict(sorted(shapes.items(), key=lambda item: item[1].stride))
        self.levels = tuple(self._shapes)
        self._divisibility = math.lcm(*(x.stride for x in shapes.values()))

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self._shapes

    @torch.no_grad()
    def view(
        self, batched_inputs: list[dict], padded_size: tuple[int, int], input_format: str
    ) -> TeacherView:
        images = normalized_batch(
            self._images(batched_inputs, input_format),
            self._mean,
            self._std,
            round_up(padded_size, self._divisibility),
        )
        view = self._view(self._maps, images)
        for level, x in view.features.items():
            self._check_size(level, x, images.tensor)
        return view

    def per_instance_losses(
        self, view: TeacherView, targets: list[Instances], background: bool = True
    ) -> PerInstanceLosses:
        """Zeros, for weighting rules that use only the labels (``requires_loss`` is False)."""
        num_levels = len(self.levels)
        zeros = torch.zeros(sum(map(len, targets)), device=targets[0].gt_boxes.device)
        return PerInstanceLosses(
            self.levels,
            {"cls": zeros},
            {"cls": zeros.new_zeros(len(targets), num_levels)},
            zeros.new_full((len(zeros), num_levels), 1 / num_levels),
        )

    @property
    def device(self) -> torch.device:
        return self._device

    def follow(self, device: torch.device) -> None:
        super().follow(device)
        if not self.stays:
            self._device = device
            self._mean, self._std = self._mean.to(device), self._std.to(device)

    def _maps(self, images: Tensor) -> dict[str, Tensor]:
        outputs = self._outputs(images)
        return {level: outputs[source] for level, source in self._sources.items()}

    def _outputs(self, images: Tensor) -> dict[str, Any]:
        """Outputs of the network by name, or by index if they have no names."""
        with clear_program_errors(f"{self.name}, on images of {tuple(images.shape)}"):
            output = self.detector(images)
        if isinstance(output, dict):
            return {str(key): x for key, x in output.items()}
        outputs = output if isinstance(output, list | tuple) else [output]
        return {str(index): x for index, x in enumerate(outputs)}

    def _check_size(self, level: str, features: Tensor, images: Tensor) -> None:
        """Refuse a map whose stride is not that of the probe, as of a network that resizes."""
        stride = self._shapes[level].stride
        sizes = zip(features.shape[2:], images.shape[2:], strict=True)
        if any(abs(cells * stride - pixels) >= stride for cells, pixels in sizes):
            raise AIDError(
                f"TEACHER.FEATURES: the output {self._sources[level]} of {self.name} has "
                f"{features.shape[2]}x{features.shape[3]} cells for images of "
                f"{images.shape[2]}x{images.shape[3]}, its stride was {stride} before: a network "
                "with one stride is needed, which does not resize its images"
            )

    def _shape(self, level: str, features: object) -> ShapeSpec:
        """Channels and stride of a map of the image of size PROBE."""
        if not isinstance(features, Tensor) or features.ndim != 4:
            actual = tuple(features.shape) if isinstance(features, Tensor) else type(features)
            raise AIDError(
                f"TEACHER.FEATURES: the output {self._sources[level]} of {self.name} is {actual}: "
                "a map (N, C, H, W) is needed; wrap the network in one that reshapes its tokens"
            )
        if not features.isfinite().all():
            raise AIDError(
                f"TEACHER.FEATURES: the output {self._sources[level]} of {self.name} is NaN or "
                "infinite on a uniform image: check the network and its weights"
            )
        height, width = features.shape[2:]
        stride = PROBE[1] // max(width, 1)
        if stride * width != PROBE[1] or abs(height * stride - PROBE[0]) >= stride:
            raise AIDError(
                f"TEACHER.FEATURES: the output {self._sources[level]} of {self.name} has "
                f"{height}x{width} cells for an image of {PROBE[0]}x{PROBE[1]}: a map with a "
                "stride of a whole number of pixels, equal in both directions, is needed"
            )
        return ShapeSpec(channels=features.shape[1], stride=stride)


def _sources(features: Sequence[str], outputs: dict[str, object], name: str) -> dict[str, str]:
    """Name of the output that is imitated on each level.

    Args:
        features: see TEACHER.FEATURES.
        outputs: outputs of the network by name.
        name: name of the teacher, for messages.
    """
    if not features and "0" not in outputs:
        return {key: key for key in outputs}
    pairs = [[part.strip() for part in str(x).rsplit(":", 1)] for x in features]
    levels = [pair[-1] for pair in pairs]
    known = all(len(pair) == 2 and pair[0] in outputs for pair in pairs)
    if not pairs or not known or len(set(levels)) < len(levels):
        raise AIDError(
            f"TEACHER.FEATURES is {list(features)}, the outputs of the teacher of {name} are "
            f"{', '.join(outputs)}: name one of these for each level, as in ['0: p4']"
        )
    return {level: source for source, level in pairs}


def load_feature_teacher(
    source: str,
    weights: str = "",
    device: str = "cpu",
    *,
    keys: tuple[str, str] = ("source", "weights"),
    **settings: Any,
) -> FeatureTeacher:
    """Build a feature teacher.

    Args:
        source: path of a TorchScript file (.pt or .ts), or ``python:package.module:attribute``,
            a callable that takes no arguments and returns an ``nn.Module``. Both are programs,
            which are run.
        weights: weights of the module that the callable returns, loaded strictly; empty if the
            module has its own.
        device: device to build it on; in training it moves to the student's.
        keys: names of ``source`` and ``weights`` in messages.
        settings: see :class:`FeatureTeacher`.

    Raises:
        AIDError: there is no such network, it fails, or its weights or maps do not match.
    """
    source_key, weights_key = keys
    name = f"{source_key} {source}"
    if source.startswith(PYTHON):
        network = _from_python(source, name)
        if weights:
            StrictCheckpointer(network, weights_key).load(weights)
    else:
        if weights:
            raise AIDError(
                f"{weights_key} is {weights}, but the TorchScript file {source} has its own "
                "weights: leave the key empty"
            )
        if not os.path.isfile(source):
            raise AIDError(f"{name} does not exist: name a TorchScript file")
        with clear_program_errors(f"{name} is no TorchScript file"):
            network = torch.jit.load(source, map_location=device)
    return FeatureTeacher(
        network, device=device, name=name, weights=weights or "of its own", **settings
    )


def _from_python(source: str, name: str) -> nn.Module:
    module, _, attribute = source.removeprefix(PYTHON).rpartition(":")
    if not module or not attribute:
        raise AIDError(f"{name}: write it as {PYTHON}package.module:attribute")
    with clear_program_errors(name):
        network = getattr(importlib.import_module(module), attribute)()
    if not isinstance(network, nn.Module):
        raise AIDError(f"{name} returns a {type(network).__name__}: return an nn.Module")
    return network
