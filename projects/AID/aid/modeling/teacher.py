"""Teachers: frozen detectors, built from their configs and weights."""

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.model_zoo import get_config_file
from detectron2.structures import ImageList, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from ..checkpoint import StrictCheckpointer
from ..config import get_value, load_config
from ..data.classes import known_classes
from ..utils.errors import AIDError
from .build import build_detector
from .class_map import ClassMap
from .families import (
    DetectionQuality,
    PerInstanceLosses,
    detection_quality,
    loss_levels,
    merge_classes,
    num_classes,
    num_classes_key,
    per_instance_losses,
)
from .placement import autocast, check_device, dtype_named, to_device

__all__ = [
    "Teacher",
    "TeacherView",
    "build_teacher",
    "load_teacher",
    "load_teacher_config",
    "map_classes",
    "num_teachers",
]

# Options of TEACHER.PRECISION, besides "".
PRECISIONS = ("float32", "bfloat16", "float16")


@dataclass
class TeacherView:
    """Batch of N images as the teacher processes it, on the teacher's device.

    Attributes:
        images: in the teacher's own preprocessing.
        features: {level: (N, C, H, W)}, output of its backbone; in float32 if the teacher has a
            precision of its own.
    """

    images: ImageList
    features: dict[str, Tensor]


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
        class_map: from the classes that it was trained on to the student's, which the detector
            has; None if it was trained on the student's.
        stays: whether it keeps its device in training, and does not move to the student's.
        precision: of its forward passes, by autocast: its weights are in float32, as evaluation,
            export and TEACHER.INHERIT need them. None for that of the student around it.
    """

    def __init__(
        self,
        detector: nn.Module,
        cfg: CfgNode,
        name: str = "no config file",
        weights: str = "",
        *,
        stays: bool = False,
        precision: torch.dtype | None = None,
    ):
        """
        Args:
            detector: of a type for which :func:`per_instance_losses` is implemented.
            cfg: the config that it was built from.
            name, weights, stays, precision: see the attributes.
        """
        self.detector = detector.eval().requires_grad_(False)
        self.cfg = cfg
        self.name = name
        self.weights = weights
        self.levels = loss_levels(detector)
        self.class_map: ClassMap | None = None
        self.stays = stays
        self.precision = precision

    def __deepcopy__(self, memo: dict) -> "Teacher":
        """The teacher itself: copies of a student share it, as nothing changes it."""
        return self

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
        with self.autocast():
            features = detector.backbone(batch)
        if self.precision is not None:
            features = {level: x.float() for level, x in features.items()}
        return TeacherView(ImageList(batch, sizes), features)

    @torch.no_grad()
    def per_instance_losses(
        self, view: TeacherView, targets: list[Instances], background: bool = True
    ) -> PerInstanceLosses:
        """Task losses of the teacher on each instance of a batch.

        The class component is 0 for instances of classes that the teacher does not know.

        Args:
            view: output of :meth:`view`.
            targets: ground truth of each image.
            background: see :func:`~aid.modeling.families.per_instance_losses`.

        Returns:
            Losses on the device of the targets; their ``predictions`` stay on the teacher's.
        """
        own = to_device(targets, self.detector.device)
        # A separate EventStorage keeps the teacher's log out of the student's.
        with EventStorage(), self.autocast():
            losses = per_instance_losses(self.detector, view.images, view.features, own, background)
        known = self.knows(own)
        if known is not None:
            losses.components["cls"] = torch.where(known, losses.components["cls"], 0.0)
        predictions, losses.predictions = losses.predictions, None
        losses = to_device(losses, targets[0].gt_boxes.device)
        losses.predictions = predictions
        return losses

    def quality(self, view: TeacherView, targets: list[Instances]) -> DetectionQuality:
        """Score and IoU of the teacher's best detection of each instance of a batch.

        Args:
            view, targets: see :meth:`per_instance_losses`.

        Returns:
            Quality on the device of the targets.
        """
        own = to_device(targets, self.detector.device)
        with EventStorage(), self.autocast():
            quality = detection_quality(self.detector, view.images, view.features, own)
        return to_device(quality, targets[0].gt_boxes.device)

    def map_classes(self, class_map: ClassMap) -> None:
        """Turn the detector into one of the student's classes.

        Args:
            class_map: from the classes of the detector.
        """
        self.class_map = class_map
        if not class_map.is_identity:
            merge_classes(self.detector, class_map)
            self.detector.to(self.detector.device).eval()

    def knows(self, targets: list[Instances]) -> Tensor | None:
        """Whether the teacher knows the class of each instance of a batch, (G,), bool.

        None if it knows all classes of the student.
        """
        unknown = self.class_map.unknown if self.class_map else []
        if not unknown:
            return None
        classes = torch.cat([x.gt_classes for x in targets])
        return ~torch.isin(classes, classes.new_tensor(unknown))

    def follow(self, device: torch.device) -> None:
        """Move the detector to ``device`` if it is on another one, and does not stay there."""
        if not self.stays and self.detector.device != device:
            self.detector.to(device)

    def autocast(self) -> AbstractContextManager[Any]:
        """Context in which the detector runs in :attr:`precision`."""
        return autocast(self.detector.device, self.precision)

    @property
    def num_parameters(self) -> int:
        """Number of parameters of the detector."""
        return sum(p.numel() for p in self.detector.parameters())


def num_teachers(cfg: CfgNode) -> int:
    """Number of teachers in a student's config: the first and those of TEACHER.MORE_*.

    Raises:
        AIDError: TEACHER.MORE_CONFIG_FILES and MORE_WEIGHTS differ in length, or are not strings;
            or TEACHER.MORE_CLASS_MAPS has another length and is not empty.
    """
    files, weights = cfg.TEACHER.MORE_CONFIG_FILES, cfg.TEACHER.MORE_WEIGHTS
    if len(files) != len(weights) or not all(isinstance(x, str) for x in (*files, *weights)):
        raise AIDError(
            f"TEACHER.MORE_CONFIG_FILES is {list(files)}, TEACHER.MORE_WEIGHTS {list(weights)}: "
            "name a config file and weights for each further teacher"
        )
    maps = cfg.TEACHER.MORE_CLASS_MAPS
    if maps and (len(maps) != len(files) or any(isinstance(x, str) for x in maps)):
        raise AIDError(
            f"TEACHER.MORE_CLASS_MAPS is {list(maps)}: write one list of entries for each of the "
            f"{len(files)} further teachers, [] for one that has the student's classes"
        )
    return 1 + len(files)


def build_teacher(cfg: CfgNode, number: int = 0) -> Teacher:
    """Build a teacher from a student's config, load its weights and map its classes.

    Args:
        cfg: the student's config, with the keys of TEACHER.
        number: 0 for the first; k for entry k - 1 of TEACHER.MORE_CONFIG_FILES and MORE_WEIGHTS.

    Raises:
        AIDError: a key is empty, the weights are the student's, or TEACHER.DEVICE or PRECISION is
            unknown; see also :func:`load_teacher` and :func:`map_classes`.
    """
    config_key, config_file = _named(cfg, "CONFIG_FILE", "MORE_CONFIG_FILES", number)
    weights_key, weights = _named(cfg, "WEIGHTS", "MORE_WEIGHTS", number)
    for key, value in ((config_key, config_file), (weights_key, weights)):
        if not value:
            raise AIDError(f"{key} is empty: name the teacher's config file and its weights")
    keys = (config_key, weights_key)
    own_device = cfg.TEACHER.DEVICE
    if own_device:
        check_device("TEACHER.DEVICE", own_device)
    teacher = load_teacher(
        config_file,
        weights,
        own_device or cfg.MODEL.DEVICE,
        keys=keys,
        student=cfg,
        stays=bool(own_device),
        precision=cfg.TEACHER.PRECISION,
    )
    if number == 0 or cfg.TEACHER.MORE_CLASS_MAPS:
        key, entries = _named(cfg, "CLASS_MAP", "MORE_CLASS_MAPS", number)
        if entries:
            map_classes(teacher, entries, _student_classes(cfg), key)
    return teacher


def map_classes(
    teacher: Teacher,
    entries: Sequence[str],
    student_classes: Sequence[str] | int,
    key: str = "entries",
) -> Teacher:
    """Turn a teacher of other classes into one of its student's classes, in place.

    Args:
        teacher: as it was loaded. Its classes are those of its config's DATASETS.TRAIN.
        entries: see :meth:`ClassMap.from_entries`.
        student_classes: names of the student's classes, or their number.
        key: name of the entries in messages.

    Returns:
        ``teacher``.

    Raises:
        AIDError: the number of classes of the teacher is not that of its dataset; see also
            :meth:`ClassMap.from_entries` and :func:`~aid.modeling.families.merge_classes`.
    """
    number = num_classes(teacher.detector)
    names = known_classes(teacher.cfg.DATASETS.TRAIN, load=True)
    if names and len(names) != number:
        raise AIDError(
            f"{key}: the teacher of {teacher.name} has {number} classes, its DATASETS.TRAIN "
            f"{', '.join(teacher.cfg.DATASETS.TRAIN)} {len(names)}: name the dataset that it was "
            "trained on"
        )
    class_map = ClassMap.from_entries(entries, names or number, student_classes, key)
    teacher.map_classes(class_map)
    return teacher


def _student_classes(cfg: CfgNode) -> Sequence[str] | int:
    """Names of a student's classes, or their number if the names are not known."""
    key = num_classes_key(cfg)
    number = get_value(cfg, key) if key else 0
    assert isinstance(number, int)
    return known_classes((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST), load=True) or number


def load_teacher(
    config_file: str,
    weights: str,
    device: str = "cpu",
    *,
    keys: tuple[str, str] = ("config_file", "weights"),
    student: CfgNode | None = None,
    stays: bool = False,
    precision: str = "",
) -> Teacher:
    """Build a trained detector as a teacher.

    Args:
        config_file: see :func:`load_teacher_config`.
        weights: any path that Detectron2 can read.
        device: the device to build it on; in training it moves to the student's unless it stays.
        keys: names of ``config_file`` and ``weights`` in messages.
        student: config of the student, to recognize its weights in an error message.
        stays: see :class:`Teacher`.
        precision: see TEACHER.PRECISION.

    Raises:
        AIDError: a file is missing, the weights do not fit the config exactly or are not finite, or
            the precision is unknown.
    """
    dtype = dtype_named("TEACHER.PRECISION", precision, PRECISIONS) if precision else None
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
    name = f"{config_key} {config_file}"
    return Teacher(detector, teacher_cfg, name, weights, stays=stays, precision=dtype)


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
