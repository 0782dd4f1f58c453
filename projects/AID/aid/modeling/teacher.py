"""Teachers: frozen networks, built from their configs and weights."""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache, partial
from pathlib import Path

import torch
from detectron2 import model_zoo
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from ..checkpoint import StrictCheckpointer, check_stored_classes
from ..config import check_program, get_value, is_program, load_config
from ..data.classes import known_classes
from ..data.ignore_regions import ignore_boxes
from ..utils.commands import train_command
from ..utils.d2 import padding
from ..utils.errors import AIDError
from ..utils.suggestions import did_you_mean_file
from ..utils.text import counted
from .build import build_detector
from .class_map import ClassMap
from .families import (
    DetectionQuality,
    PerInstanceLosses,
    best_detections,
    detect,
    loss_levels,
    merge_classes,
    num_classes,
    num_classes_key,
    per_instance_losses,
)
from .feature_teacher import load_feature_teacher
from .lazy_teacher import read_lazy_config
from .placement import dtype_named, is_usable, to_device
from .teacher_base import TeacherBase, TeacherView, normalized_batch, round_up
from .teacher_cache import TeacherCache, digest
from .teacher_keys import DETECTION_FILE, FEATURE_NETWORK, named, teacher_kinds

__all__ = [
    "Teacher",
    "build_teacher",
    "check_square",
    "load_teacher",
    "load_teacher_config",
    "map_classes",
]

# Options of TEACHER.PRECISION, besides "".
PRECISIONS = ("float32", "bfloat16", "float16")


class Teacher(TeacherBase):
    """Frozen detector; see :class:`TeacherBase`.

    Attributes:
        detector: the Detectron2 detector.
        cfg: config of the detector; for a LazyConfig the result of :func:`read_lazy_config`.
        levels: feature levels that the heads use, finest first.
    """

    has_heads = True

    def __init__(
        self, detector: nn.Module, cfg: CfgNode, name: str = "no config file", weights: str = ""
    ):
        """
        Args:
            detector: detector of a type for which :func:`per_instance_losses` is implemented.
            cfg: config of the detector.
            name, weights: see the attributes.

        Raises:
            AIDError: no loss per instance is defined for the detector.
        """
        super().__init__(detector, cfg, name, weights)
        try:
            self.levels = loss_levels(detector)
        except AIDError as error:
            raise AIDError(f"{name}: {error}") from None

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self.detector.backbone.output_shape()

    @torch.no_grad()
    def view(
        self, batched_inputs: list[dict], padded_size: tuple[int, int], input_format: str
    ) -> TeacherView:
        detector = self.detector
        square, divisibility = padding(detector.backbone)
        if square:
            check_square(padded_size, square, self.name)
            padded_size = (square, square)
        images = normalized_batch(
            self._images(batched_inputs, input_format),
            detector.pixel_mean,
            detector.pixel_std,
            round_up(padded_size, divisibility),
        )
        return self._view(detector.backbone, images)

    @torch.no_grad()
    def per_instance_losses(
        self, view: TeacherView, targets: list[Instances], background: bool = True
    ) -> PerInstanceLosses:
        own = to_device(targets, self.device)
        if view.keys:
            losses = self._cached_losses(view, own, background)
        else:
            losses = self._losses(view, own, background)
        has_class = self.has_class(own)
        if has_class is not None:
            losses.components["cls"] = torch.where(has_class, losses.components["cls"], 0.0)
        predictions, losses.predictions = losses.predictions, None
        losses = to_device(losses, targets[0].gt_boxes.device)
        losses.predictions = predictions
        return losses

    def _losses(
        self, view: TeacherView, targets: list[Instances], background: bool
    ) -> PerInstanceLosses:
        # A separate EventStorage keeps the teacher's log out of the student's.
        with EventStorage(), self.autocast():
            return per_instance_losses(
                self.detector, view.images, view.features, targets, background
            )

    def _cached_losses(
        self, view: TeacherView, targets: list[Instances], background: bool
    ) -> PerInstanceLosses:
        """Losses without predictions, from the cache if it has them."""

        def compute(new: list[int]) -> list[dict[str, Tensor]]:
            own = [targets[n] for n in new]
            return self._losses(view[new], own, background).by_image([len(x) for x in own])

        assert self.cache is not None
        settings = (background, self.class_map, _code_of_losses())
        keys = [
            digest(key, size, x.gt_boxes.tensor, x.gt_classes, ignore_boxes(x).tensor, *settings)
            for key, size, x in zip(view.keys, view.images.image_sizes, targets, strict=True)
        ]
        found = self.cache(keys, compute)
        return PerInstanceLosses.from_images(self.levels, to_device(found, self.device))

    def quality(self, view: TeacherView, targets: list[Instances]) -> DetectionQuality:
        own = to_device(targets, self.device)
        with self.autocast():
            quality = best_detections(self.detections(view), own)
        return to_device(quality, targets[0].gt_boxes.device)

    def map_classes(self, class_map: ClassMap) -> None:
        """Convert the detector to the student's classes.

        Args:
            class_map: map from the classes of the detector.
        """
        self.class_map = class_map
        if not class_map.is_identity:
            merge_classes(self.detector, class_map)
            self.detector.to(self.device).eval()

    def has_class(self, targets: list[Instances]) -> Tensor | None:
        unknown = self.class_map.unknown if self.class_map else []
        if not unknown:
            return None
        classes = torch.cat([x.gt_classes for x in targets])
        # No torch.isin, for which the ids would be copied to the device.
        return torch.stack([classes != k for k in unknown]).all(dim=0)

    @torch.no_grad()
    def detections(self, view: TeacherView) -> list[Instances]:
        with EventStorage(), self.autocast():
            return detect(self.detector, view.images, view.features)

    @property
    def device(self) -> torch.device:
        return self.detector.device


@cache
def _code_of_losses() -> str:
    """Hash of this package's code, in many of whose modules losses per instance are computed."""
    files = sorted(Path(__file__).parents[1].rglob("*.py"))
    return digest(*(path.read_bytes() for path in files))


def check_square(padded_size: tuple[int, int], square: int, name: str) -> None:
    """Check that the student's images fit into the square to which a teacher pads them.

    Args:
        padded_size: height and width of the student's padded images.
        square: side of the square in pixels.
        name: name of the teacher, for the message.

    Raises:
        AIDError: the images do not fit.
    """
    if max(padded_size) > square:
        raise AIDError(
            f"the student pads images to up to {padded_size[0]}x{padded_size[1]}, the teacher of "
            f"{name} takes squares of {square}: lower INPUT.MAX_SIZE_TRAIN and MAX_SIZE_TEST"
        )


def build_teacher(cfg: CfgNode, number: int = 0) -> TeacherBase:
    """Build a teacher from a student's config, load its weights and map its classes.

    Args:
        cfg: the student's config, with the keys of TEACHER.
        number: 0 for the first teacher; k for entry k - 1 of TEACHER.MORE_CONFIG_FILES and
            MORE_WEIGHTS.

    Raises:
        AIDError: a key is empty, a program is named only in a config file, the weights are the
            student's, TEACHER.DEVICE or PRECISION is unknown, or the teacher is a file of
            detections; see also :func:`teacher_kinds`, :func:`load_teacher`,
            :func:`load_feature_teacher` and :func:`map_classes`.
    """
    kind = teacher_kinds(cfg)[number]
    if kind == DETECTION_FILE:
        raise AIDError(
            f"TEACHER.DETECTIONS {cfg.TEACHER.DETECTIONS} is {kind} of the training images, known "
            "in training only: a network is needed here"
        )
    config_key, config_file = named(cfg, "CONFIG_FILE", "MORE_CONFIG_FILES", number)
    weights_key, weights = named(cfg, "WEIGHTS", "MORE_WEIGHTS", number)
    keys = (config_key, weights_key)
    check_program(config_file, config_key)
    own_device, precision = cfg.TEACHER.DEVICE, cfg.TEACHER.PRECISION
    if own_device and not is_usable(own_device):
        raise AIDError(
            f"TEACHER.DEVICE is {own_device!r}, which torch cannot use here: write cpu or a GPU "
            'such as cuda:1, or "" for the student\'s device'
        )
    dtype = dtype_named("TEACHER.PRECISION", precision, PRECISIONS) if precision else None
    device = own_device or cfg.MODEL.DEVICE
    teacher: TeacherBase
    if kind == FEATURE_NETWORK:
        teacher = load_feature_teacher(
            config_file,
            weights,
            device,
            features=cfg.TEACHER.FEATURES,
            pixel_mean=cfg.TEACHER.PIXEL_MEAN,
            pixel_std=cfg.TEACHER.PIXEL_STD,
            input_format=cfg.TEACHER.FORMAT,
            keys=keys,
        )
    else:
        if not weights:
            raise AIDError(f"{weights_key} is empty: name the weights of {config_key}")
        teacher = load_teacher(config_file, weights, device, keys=keys, student=cfg)
        if number == 0 or cfg.TEACHER.MORE_CLASS_MAPS:
            key, entries = named(cfg, "CLASS_MAP", "MORE_CLASS_MAPS", number)
            if entries:
                map_classes(teacher, entries, _student_classes(cfg), key)
    teacher.stays, teacher.precision = bool(own_device), dtype
    if cfg.TEACHER.CACHE:
        if is_program(config_file):
            raise AIDError(
                f"TEACHER.CACHE is {cfg.TEACHER.CACHE}, but {config_key} {config_file} is a "
                "program, whose changes would not be noticed: set TEACHER.CACHE to ''"
            )
        folder, size = cfg.TEACHER.CACHE, cfg.TEACHER.CACHE_GIB
        teacher.cache = TeacherCache(folder, size, teacher.detector, teacher.cfg.MODEL.dump())
    return teacher


def map_classes(
    teacher: Teacher,
    entries: Sequence[str],
    student_classes: Sequence[str] | int,
    key: str = "entries",
) -> Teacher:
    """Convert a teacher of other classes to its student's classes, in place.

    Args:
        teacher: teacher with the classes of its config's DATASETS.TRAIN.
        entries: see :meth:`ClassMap.from_entries`.
        student_classes: names of the student's classes, or their number.
        key: name of the entries in messages.

    Returns:
        ``teacher``.

    Raises:
        AIDError: the numbers of classes of the teacher and of its dataset differ; see also
            :meth:`ClassMap.from_entries` and :func:`~aid.modeling.families.merge_classes`.
    """
    number = num_classes(teacher.detector)
    names = known_classes(teacher.cfg.DATASETS.TRAIN, load=True)
    if names and len(names) != number:
        raise AIDError(
            f"{key}: the teacher of {teacher.name} has {counted(number, 'class')}, its "
            f"DATASETS.TRAIN {', '.join(teacher.cfg.DATASETS.TRAIN)} {len(names)}: name the "
            "dataset that it was trained on"
        )
    class_map = ClassMap.from_entries(entries, names or number, student_classes, key)
    teacher.map_classes(class_map)
    return teacher


def _student_classes(cfg: CfgNode) -> Sequence[str] | int:
    """Names of a student's classes, or their number if the names are unknown."""
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
) -> Teacher:
    """Build a trained detector as a teacher.

    Args:
        config_file: path of a YAML file or a LazyConfig, or its name in Detectron2's model zoo. A
            LazyConfig is a program, which is run.
        weights: any path that Detectron2 can read.
        device: device to build it on; in training it moves to the student's unless it stays.
        keys: names of ``config_file`` and ``weights`` in messages.
        student: config of the student, to recognize its weights in an error message.

    Raises:
        AIDError: a file is missing, or the weights do not match the config exactly, are not finite,
            or are of a detector of other classes than the config's training set.
    """
    config_key, weights_key = keys
    teacher_cfg, build = _read_config(config_file, config_key)
    teacher_cfg.MODEL.DEVICE = device
    if "://" not in weights and not os.path.isfile(weights):
        script = "tools/lazyconfig_train_net.py" if config_file.endswith(".py") else "train_net.py"
        command = train_command(config_file, student.MODEL.DEVICE if student else "", script)
        raise AIDError(
            f"{weights_key} {weights} does not exist: train the teacher first with `{command}`, "
            f"which writes {teacher_cfg.OUTPUT_DIR}/model_final.pth, or name another file"
        )
    detector = build().to(device)
    try:
        content = StrictCheckpointer(detector, weights_key, config_key).load(weights)
    except AIDError:
        if student is None or not _fits(weights, student):
            raise
        raise AIDError(
            f"{weights_key} {weights} is a checkpoint of the student's own architecture, and not "
            f"of {config_key} {config_file}: name the teacher's weights"
        ) from None
    check_stored_classes(
        content.get("classes"),
        known_classes(teacher_cfg.DATASETS.TRAIN),
        f"{weights_key} {weights}",
        f"DATASETS.TRAIN of {config_key} {config_file} has",
        "name the config.yaml of the run that wrote the weights",
    )
    return Teacher(detector, teacher_cfg, f"{config_key} {config_file}", weights)


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
    """Read a teacher's YAML config from a file or from Detectron2's model zoo.

    Args:
        config_file: path, or name in the model zoo.
        key: config key that it is the value of, for the message.
        opts: ``KEY VALUE`` pairs that override the file.

    Raises:
        AIDError: no such config, or it is malformed or a program.
    """
    path, is_own = _find_config(config_file, key)
    if is_program(path):
        raise AIDError(f"{key} {config_file} is a program: name a YAML config here")
    # Some of Detectron2's own files compute values, which no other file may do.
    return load_config(path, opts, allow_unsafe=is_own)


def _read_config(config_file: str, key: str) -> tuple[CfgNode, Callable[[], nn.Module]]:
    """Config of a teacher, and the function that builds its detector."""
    path, _ = _find_config(config_file, key)
    if path.endswith(".py"):
        return read_lazy_config(path, f"{key} {config_file}")
    cfg = load_teacher_config(config_file, key)
    return cfg, partial(build_detector, cfg)


def _find_config(config_file: str, key: str) -> tuple[str, bool]:
    """Path of a config, and whether it is in Detectron2's model zoo."""
    if os.path.isfile(config_file):
        return config_file, False
    if not os.path.normpath(config_file).startswith(".."):  # out of the model zoo
        with suppress(RuntimeError):
            return model_zoo.get_config_file(config_file), True
    zoo = os.path.join(os.path.dirname(model_zoo.__file__), "configs")
    raise AIDError(
        f"{key} {config_file} was found neither beside the config file that names it, nor from the "
        f"current folder, nor in Detectron2's model zoo{did_you_mean_file(config_file, '', zoo)}"
    )
