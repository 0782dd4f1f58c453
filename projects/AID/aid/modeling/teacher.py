"""Teachers: frozen detectors, built from their configs and weights."""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from detectron2.model_zoo import get_config_file
from detectron2.structures import ImageList, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from ..checkpoint import StrictCheckpointer
from ..config import load_config
from ..utils.errors import AIDError
from .build import build_detector
from .families import (
    DetectionQuality,
    PerInstanceLosses,
    detection_quality,
    loss_levels,
    per_instance_losses,
)
from .families.base import detect

__all__ = [
    "Teacher",
    "TeacherView",
    "build_teacher",
    "load_teacher",
    "load_teacher_config",
    "num_teachers",
]


@dataclass
class TeacherView:
    """Batch of N images as the teacher processes it.

    Attributes:
        images: in the teacher's own preprocessing.
        features: {level: (N, C, H, W)}, output of its backbone.
    """

    images: ImageList
    features: dict[str, Tensor]

    def __getitem__(self, index: slice) -> "TeacherView":
        images = ImageList(self.images.tensor[index], self.images.image_sizes[index])
        return TeacherView(images, {level: x[index] for level, x in self.features.items()})


class Teacher:
    """Frozen detector in eval mode, run without gradient.

    It is no ``nn.Module``: as an attribute of a student it stays out of the student's parameters,
    state dict, DDP and optimizer, and ``.train()`` does not change its mode.

    Attributes:
        detector: the Detectron2 detector.
        cfg: its config.
        name: key and file of its config, for messages.
        weights: path of its weights, for messages.
        levels: feature levels that its heads read, finest first.
    """

    def __init__(
        self, detector: nn.Module, cfg: CfgNode, name: str = "no config file", weights: str = ""
    ):
        """
        Args:
            detector: of a type for which :func:`per_instance_losses` is implemented.
            cfg: the config that it was built from.
            name, weights: see the attributes.
        """
        self.detector = detector.eval().requires_grad_(False)
        self.cfg = cfg
        self.name = name
        self.weights = weights
        self.levels = loss_levels(detector)

    @torch.no_grad()
    def view(
        self, batched_inputs: list[dict], padded_size: tuple[int, int], input_format: str
    ) -> TeacherView:
        """Run the teacher's backbone on the raw batch.

        Args:
            batched_inputs: the standard input of a Detectron2 model, N dicts.
            padded_size: height and width to which the student pads the batch; the same size aligns
                the feature maps.
            input_format: channel order of the images, "BGR" or "RGB".

        Raises:
            AIDError: the size is not divisible as the teacher's backbone requires.
        """
        detector = self.detector
        divisibility = detector.backbone.size_divisibility
        if divisibility > 0 and any(side % divisibility for side in padded_size):
            raise AIDError(
                f"the student pads images to {padded_size[0]}x{padded_size[1]}, the teacher's "
                f"backbone needs multiples of {divisibility}: choose a teacher with the same FPN"
            )
        images = [x["image"].to(detector.device) for x in batched_inputs]
        if input_format != self.cfg.INPUT.FORMAT:
            images = [x.flip(0) for x in images]
        sizes = [tuple(x.shape[-2:]) for x in images]
        # Normalized before padding, as in Detectron2: the padding has the mean color.
        # A gray image has as many channels as it is normalized to.
        channels = max(len(images[0]), len(detector.pixel_mean))
        shape = (len(images), channels, *padded_size)
        batch = images[0].new_zeros(shape, dtype=torch.float32)
        for padded, image, (height, width) in zip(batch, images, sizes, strict=True):
            padded[:, :height, :width] = (image - detector.pixel_mean) / detector.pixel_std
        return TeacherView(ImageList(batch, sizes), detector.backbone(batch))

    @torch.no_grad()
    def per_instance_losses(
        self, view: TeacherView, targets: list[Instances], background: bool = True
    ) -> PerInstanceLosses:
        """Task losses of the teacher on each instance of a batch.

        Args:
            view: output of :meth:`view`.
            targets: ground truth of each image, on the teacher's device.
            background: see :func:`~aid.modeling.families.per_instance_losses`.
        """
        # A separate EventStorage keeps the teacher's log out of the student's.
        with EventStorage():
            return per_instance_losses(
                self.detector, view.images, view.features, targets, background
            )

    def quality(self, view: TeacherView, targets: list[Instances]) -> DetectionQuality:
        """Score and IoU of the teacher's best detection of each instance of a batch.

        Args:
            view, targets: see :meth:`per_instance_losses`.
        """
        with EventStorage():
            return detection_quality(self.detector, view.images, view.features, targets)

    @torch.no_grad()
    def detections(self, view: TeacherView) -> list[Instances]:
        """Detections of each image of a batch, in pixels of the detector's input."""
        with EventStorage():
            return detect(self.detector, view.images, view.features)

    def follow(self, device: torch.device) -> None:
        """Move the detector to ``device`` if it is on another one."""
        if self.detector.device != device:
            self.detector.to(device)

    @property
    def num_parameters(self) -> int:
        """Number of parameters of the detector."""
        return sum(p.numel() for p in self.detector.parameters())


def num_teachers(cfg: CfgNode) -> int:
    """Number of teachers in a student's config: the first and those of TEACHER.MORE_*.

    Raises:
        AIDError: TEACHER.MORE_CONFIG_FILES and MORE_WEIGHTS differ in length, or are not strings.
    """
    files, weights = cfg.TEACHER.MORE_CONFIG_FILES, cfg.TEACHER.MORE_WEIGHTS
    if len(files) != len(weights) or not all(isinstance(x, str) for x in (*files, *weights)):
        raise AIDError(
            f"TEACHER.MORE_CONFIG_FILES is {list(files)}, TEACHER.MORE_WEIGHTS {list(weights)}: "
            "name a config file and weights for each further teacher"
        )
    return 1 + len(files)


def build_teacher(cfg: CfgNode, number: int = 0) -> Teacher:
    """Build a teacher from a student's config, and load its weights.

    Args:
        cfg: the student's config, with TEACHER.CONFIG_FILE and TEACHER.WEIGHTS.
        number: 0 for the first; k for entry k - 1 of TEACHER.MORE_CONFIG_FILES and MORE_WEIGHTS.

    Raises:
        AIDError: a key is empty, or the weights are the student's; see also :func:`load_teacher`.
    """
    config_key, config_file = _named(cfg, "CONFIG_FILE", "MORE_CONFIG_FILES", number)
    weights_key, weights = _named(cfg, "WEIGHTS", "MORE_WEIGHTS", number)
    for key, value in ((config_key, config_file), (weights_key, weights)):
        if not value:
            raise AIDError(f"{key} is empty: name the teacher's config file and its weights")
    keys = (config_key, weights_key)
    return load_teacher(config_file, weights, cfg.MODEL.DEVICE, keys=keys, student=cfg)


def load_teacher(
    config_file: str,
    weights: str,
    device: str = "cpu",
    *,
    keys: tuple[str, str] = ("config_file", "weights"),
    student: CfgNode | None = None,
) -> Teacher:
    """Build a trained detector as a teacher.

    Args:
        config_file: see :func:`load_teacher_config`.
        weights: any path that Detectron2 can read.
        device: the device to build it on; in training it moves to the student's.
        keys: names of ``config_file`` and ``weights`` in messages.
        student: config of the student, to recognize its weights in an error message.

    Raises:
        AIDError: a file is missing, or the weights do not fit the config exactly or are not finite.
    """
    config_key, weights_key = keys
    teacher_cfg = load_teacher_config(config_file, config_key)
    teacher_cfg.MODEL.DEVICE = device
    if "://" not in weights and not os.path.isfile(weights):
        raise AIDError(
            f"{weights_key} {weights} does not exist: train the teacher first with `python "
            f"train_net.py --config-file {config_file}`, which writes "
            f"{teacher_cfg.OUTPUT_DIR}/model_final.pth, or name another file"
        )
    detector = build_detector(teacher_cfg)
    try:
        StrictCheckpointer(detector, weights_key).load(weights)
    except AIDError:
        if student is None or not _fits(weights, student):
            raise
        raise AIDError(
            f"{weights_key} {weights} is a checkpoint of the student's own architecture, and not "
            f"of {config_key} {config_file}: name the teacher's weights"
        ) from None
    return Teacher(detector, teacher_cfg, f"{config_key} {config_file}", weights)


def _named(cfg: CfgNode, first: str, more: str, number: int) -> tuple[str, str]:
    """Full name of a key of TEACHER, and its value, for the teacher of this number."""
    if number == 0:
        return f"TEACHER.{first}", cfg.TEACHER[first]
    return f"TEACHER.{more}[{number - 1}]", cfg.TEACHER[more][number - 1]


def _fits(weights: str, cfg: CfgNode) -> bool:
    """Whether a file has exactly the weights of the detector of a config."""
    try:
        StrictCheckpointer(build_detector(cfg), "MODEL.WEIGHTS").load(weights)
    except AIDError:
        return False
    return True


def load_teacher_config(
    config_file: str, key: str = "TEACHER.CONFIG_FILE", opts: Sequence[str] = ()
) -> CfgNode:
    """Read a teacher's config from a file or from Detectron2's model zoo.

    Args:
        config_file: path, or name in the model zoo.
        key: config key that it is the value of, for the message.
        opts: ``KEY VALUE`` pairs that override the file.

    Raises:
        AIDError: no such config, or it is malformed.
    """
    if os.path.isfile(config_file):
        return load_config(config_file, opts)
    if not os.path.normpath(config_file).startswith(".."):  # out of the model zoo
        # Some of Detectron2's own files compute values, which no other file may do.
        with suppress(RuntimeError):
            return load_config(get_config_file(config_file), opts, allow_unsafe=True)
    raise AIDError(
        f"{key} {config_file} was found neither beside the config file that names it, "
        "nor from the current folder, nor in Detectron2's model zoo"
    )
