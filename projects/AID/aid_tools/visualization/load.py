"""Loading of the student with its teachers, of its checkpoint, and of the images to show."""

import os

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.utils.env import seed_all_rng

from aid.checkpoint import (
    NonFiniteError,
    StrictCheckpointer,
    StudentCheckpointer,
    check_kinds,
    clear_load_errors,
    load_file,
    non_finite,
    of_other_shapes,
)
from aid.engine.setup import check_dataset
from aid.inference import load_config_of
from aid.modeling.build import build_detector
from aid.modeling.inheritance import inherit
from aid.modeling.meta_arch import DistillationMixin, plain_architecture
from aid.utils.errors import AIDError
from aid.utils.suggestions import did_you_mean

__all__ = [
    "build_student",
    "check_student",
    "choose_images",
    "files_of",
    "load_records",
    "load_trained",
]


def files_of(model: str, weights: str) -> tuple[str, str]:
    """Config file and checkpoint of a student.

    Args:
        model: output folder of a run, or config file.
        weights: checkpoint; empty for the last one of the folder, and for none with a file.

    Raises:
        AIDError: the folder has no config or no checkpoint.
    """
    if not os.path.isdir(model):
        return model, weights
    return os.path.join(model, "config.yaml"), load_config_of(model, weights).MODEL.WEIGHTS


def check_student(cfg: CfgNode) -> None:
    """Check that a config is that of a student whose teachers have features.

    Raises:
        AIDError: it uses no distillation, or has a teacher without features.
    """
    name = cfg.MODEL.META_ARCHITECTURE
    if plain_architecture(name) == name:
        raise AIDError(
            f"MODEL.META_ARCHITECTURE {name} has no teacher: choose the config of a student with "
            "distillation, such as those in configs/AID"
        )
    if cfg.TEACHER.DETECTIONS:
        raise AIDError(
            f"TEACHER.DETECTIONS {cfg.TEACHER.DETECTIONS} has no features to draw: choose the "
            "config of a student with a network as teacher"
        )


def build_student(cfg: CfgNode) -> DistillationMixin:
    """Build a student with its teachers in the state in which training starts, in eval mode.

    Args:
        cfg: the student's config. Weights that MODEL.WEIGHTS lacks are initialized by SEED.

    Raises:
        AIDError: see :func:`check_student`; or the student or a teacher cannot be built.
    """
    check_student(cfg)
    cfg = cfg.clone()
    cfg.TEACHER.CACHE = ""  # that of the training
    seed_all_rng(cfg.SEED)
    student = build_detector(cfg)
    student.build_distillation(cfg)
    StudentCheckpointer(student).load(cfg.MODEL.WEIGHTS, checkpointables=[])
    if cfg.TEACHER.INHERIT:
        inherit(student, student.teacher.detector)
    return student.eval()


def load_trained(student: DistillationMixin, path: str) -> bool:
    """Load a checkpoint of the student's run, with its adapters.

    Args:
        student: result of :func:`build_student`.
        path: path of the checkpoint.

    Returns:
        True if the checkpoint has adapters.

    Raises:
        AIDError: the checkpoint cannot be read, or belongs to another detector, to other teachers
            or to other losses.
    """
    distillation, student.distillation = student.distillation, None
    try:
        StrictCheckpointer(student, "--weights", "--config-file").load(path)
    finally:
        student.distillation = distillation
    with clear_load_errors("--weights", path):
        adapters = load_file(path).get("distillation") if path.endswith(".pth") else None
        if broken := non_finite(adapters):
            raise NonFiniteError(broken)
        check_kinds(adapters or {}, distillation.state_dict())
    if adapters is None:
        return False
    if others := of_other_shapes(adapters, distillation.state_dict()):
        raise AIDError(
            f"--weights {path}: its adapters are of other teachers or losses ({len(others)} "
            f"tensors, first {others[0]}): give the config.yaml of its run as --config-file"
        )
    distillation.load_state_dict(adapters)
    return True


def load_records(cfg: CfgNode, name: str) -> list[dict]:
    """Load the records of a registered dataset, in Detectron2's standard format.

    Raises:
        AIDError: the dataset is unknown, cannot be loaded, has no labels, or has other classes than
            the model.
    """
    if name not in DatasetCatalog.list():
        known = ", ".join(dict.fromkeys((*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN)))
        raise AIDError(
            f"--dataset {name!r} is not registered{did_you_mean(name, DatasetCatalog.list())}: "
            f"choose another one (the config's are {known}), or name the file that registers it by "
            "--register"
        )
    unmasked = cfg.clone()
    unmasked.defrost()
    unmasked.MODEL.MASK_ON = False  # masks are not used here
    check_dataset(unmasked, "TRAIN", name)
    return DatasetCatalog.get(name)


def choose_images(records: list[dict], wanted: str) -> list[dict]:
    """Select images of a dataset.

    Args:
        records: records of the dataset.
        wanted: number of images, evenly spaced, or comma-separated file names.

    Raises:
        AIDError: the number is not positive, or no image has a given name.
    """
    if wanted.isdecimal():
        if int(wanted) < 1:
            raise AIDError(f"--images {wanted}: give a number from 1, or names of image files")
        return spread(records, int(wanted))
    by_name = {os.path.basename(record["file_name"]): record for record in records}
    by_name.update((record["file_name"], record) for record in records)
    names = wanted.split(",")
    for name in names:
        if name not in by_name:
            raise AIDError(
                f"--images: the dataset has no image {name!r}: its names are like "
                f"{os.path.basename(records[0]['file_name'])}"
            )
    return [by_name[name] for name in names]


def spread(records: list[dict], count: int) -> list[dict]:
    """Select ``count`` evenly spaced records."""
    count = min(count, len(records))
    return [records[i * len(records) // count] for i in range(count)]
