"""The frozen detector that a student imitates."""

import os
from contextlib import suppress
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from detectron2.model_zoo import get_config_file
from detectron2.modeling import build_model
from detectron2.structures import ImageList, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from ..checkpoint import StrictCheckpointer
from ..config import load_config
from ..utils.errors import AIDError
from .families import (
    DetectionQuality,
    PerInstanceLosses,
    detection_quality,
    loss_levels,
    per_instance_losses,
)

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
    """What the teacher sees in a batch of N images.

    Attributes:
        images: the batch in the teacher's own preprocessing.
        features: {level: (N, C, H, W)}, the output of its backbone.
    """

    images: ImageList
    features: dict[str, Tensor]


class Teacher:
    """A detector that never trains: frozen, in eval mode, run without gradient.

    It is no ``nn.Module``, so that a student can hold it without making it a part of its
    parameters, its state dict, DDP or the optimizer, and no ``.train()`` reaches it. It follows the
    device of the images it is given.
    """

    def __init__(
        self, detector: nn.Module, cfg: CfgNode, name: str = "no config file", weights: str = ""
    ):
        """
        Args:
            detector: a Detectron2 detector whose type has :func:`per_instance_losses`.
            cfg: the config it was built from.
            name: for messages, the key and the file of its config.
            weights: likewise, their path.
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
            padded_size: height and width to which the student padded the batch; padding to the
                same size aligns the feature maps.
            input_format: channel order of the images, "BGR" or "RGB".

        Raises:
            AIDError: the teacher's backbone cannot take an input of this size.
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
        # Normalised before it is padded, as Detectron2 does it: padding is the mean colour.
        batch = images[0].new_zeros((len(images), 3, *padded_size), dtype=torch.float32)
        for padded, image, (height, width) in zip(batch, images, sizes, strict=True):
            padded[:, :height, :width] = (image - detector.pixel_mean) / detector.pixel_std
        return TeacherView(ImageList(batch, sizes), detector.backbone(batch))

    @torch.no_grad()
    def per_instance_losses(
        self, view: TeacherView, targets: list[Instances], background: bool = True
    ) -> PerInstanceLosses:
        """The teacher's own losses against the ground truth of the batch it has seen.

        Args:
            view: of :meth:`view`.
            targets: ground truth of each image, on the teacher's device.
            background: see :func:`~aid.modeling.instance_loss.per_instance_losses`.
        """
        # An EventStorage of its own keeps whatever the teacher logs out of the student's.
        with EventStorage():
            return per_instance_losses(
                self.detector, view.images, view.features, targets, background
            )

    def quality(self, view: TeacherView, targets: list[Instances]) -> DetectionQuality:
        """How well the teacher finds each instance of the batch it has seen.

        Args:
            view, targets: as for :meth:`per_instance_losses`.
        """
        with EventStorage():
            return detection_quality(self.detector, view.images, view.features, targets)

    def follow(self, device: torch.device) -> None:
        """Move to ``device``, if it is elsewhere."""
        if self.detector.device != device:
            self.detector.to(device)

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.detector.parameters())


def num_teachers(cfg: CfgNode) -> int:
    """How many teachers a student's config names: the first and those of TEACHER.MORE_*.

    Raises:
        AIDError: the lists of the further ones do not belong together.
    """
    files, weights = cfg.TEACHER.MORE_CONFIG_FILES, cfg.TEACHER.MORE_WEIGHTS
    if len(files) != len(weights) or not all(isinstance(x, str) for x in (*files, *weights)):
        raise AIDError(
            f"TEACHER.MORE_CONFIG_FILES is {list(files)}, TEACHER.MORE_WEIGHTS {list(weights)}: "
            "name a config file and weights for each further teacher"
        )
    return 1 + len(files)


def build_teacher(cfg: CfgNode, number: int = 0) -> Teacher:
    """Build a teacher that a student's config names, and load its weights.

    Args:
        cfg: the student's config, with TEACHER.CONFIG_FILE and TEACHER.WEIGHTS.
        number: 0 for the first; k for entry k - 1 of TEACHER.MORE_CONFIG_FILES and MORE_WEIGHTS.

    Raises:
        AIDError: a key is empty, or see :func:`load_teacher`; or the weights are the student's.
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
        device: to build it on; in training it follows its student.
        keys: what messages call the two.
        student: config of the student, to tell whose weights they are.

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
    detector = build_model(teacher_cfg)
    try:
        StrictCheckpointer(detector, weights_key).load(weights)
    except AIDError:
        if student is None or not _fits(weights, student):
            raise
        raise AIDError(
            f"{weights_key} {weights} is a checkpoint of the student's own architecture, and not "
            f"of {config_key} {config_file}: name the teacher's weights"
        ) from None
    broken = [k for k, v in detector.state_dict().items() if not v.isfinite().all()]
    if broken:
        raise AIDError(
            f"{weights_key} {weights} holds NaN or infinity in {len(broken)} tensors, first "
            f"{broken[0]}: the teacher's training diverged; train it again"
        )
    return Teacher(detector, teacher_cfg, f"{config_key} {config_file}", weights)


def _named(cfg: CfgNode, first: str, more: str, number: int) -> tuple[str, str]:
    """A key as messages name it, and its value, for the teacher of this number."""
    if number == 0:
        return f"TEACHER.{first}", cfg.TEACHER[first]
    return f"TEACHER.{more}[{number - 1}]", cfg.TEACHER[more][number - 1]


def _fits(weights: str, cfg: CfgNode) -> bool:
    """Whether the file has exactly the weights of the detector that ``cfg`` describes."""
    try:
        StrictCheckpointer(build_model(cfg), "MODEL.WEIGHTS").load(weights)
    except AIDError:
        return False
    return True


def load_teacher_config(
    config_file: str, key: str = "TEACHER.CONFIG_FILE", opts: list[str] = ()
) -> CfgNode:
    """Read a teacher's config: a file, or a name in Detectron2's model zoo.

    Args:
        config_file: value of ``key``.
        key: for the message.
        opts: ``KEY VALUE`` pairs that override the file.

    Raises:
        AIDError: it is neither, or malformed.
    """
    if os.path.isfile(config_file):
        return load_config(config_file, opts)
    if not os.path.normpath(config_file).startswith(".."):  # out of the model zoo
        # Detectron2's own files, some of which compute values: the only ones trusted with that.
        with suppress(RuntimeError):
            return load_config(get_config_file(config_file), opts, allow_unsafe=True)
    raise AIDError(
        f"{key} {config_file} was found neither beside the config file that names it, "
        "nor from the current folder, nor in Detectron2's model zoo"
    )
