"""From a config to a student with its teachers, before and after its training, and to images."""

import os

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.utils.env import seed_all_rng

from aid.checkpoint import StrictCheckpointer, StudentCheckpointer, clear_load_errors, load_file
from aid.engine.setup import check_dataset
from aid.modeling.inheritance import inherit
from aid.modeling.meta_arch import DistillationMixin
from aid.utils.errors import AIDError

__all__ = ["build_student", "choose_images", "load_records", "load_trained"]


def build_student(cfg: CfgNode) -> DistillationMixin:
    """The student as its training begins, with its teachers, in eval mode.

    Args:
        cfg: the student's config; weights that MODEL.WEIGHTS does not have are drawn by SEED.

    Raises:
        AIDError: the config does not distil, or what it names cannot be built or read.
    """
    architecture = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
    if not issubclass(architecture, DistillationMixin):
        raise AIDError(
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} has no teacher: choose the "
            "config of a student that distils, such as those in configs/AID"
        )
    seed_all_rng(cfg.SEED)
    student = build_model(cfg)
    student.build_distillation(cfg)
    StudentCheckpointer(student).load(cfg.MODEL.WEIGHTS, checkpointables=[])
    if cfg.TEACHER.INHERIT:
        inherit(student, student.teacher.detector)
    return student.eval()


def load_trained(student: DistillationMixin, path: str) -> bool:
    """Load a checkpoint of the student's run, with its adapters.

    Args:
        student: of :func:`build_student`.
        path: of the checkpoint.

    Returns:
        Whether it has adapters.

    Raises:
        AIDError: it cannot be read, or is of another detector, or of other teachers or losses.
    """
    parts, student.distillation = student.distillation, None
    try:
        StrictCheckpointer(student, "--weights").load(path)
    finally:
        student.distillation = parts
    with clear_load_errors("--weights", path):
        adapters = load_file(path).get("distillation") if path.endswith(".pth") else None
    if adapters is None:
        return False
    wanted, found = ({k: v.shape for k, v in x.items()} for x in (parts.state_dict(), adapters))
    odd = sorted(k for k in wanted.keys() | found.keys() if wanted.get(k) != found.get(k))
    if odd:
        raise AIDError(
            f"--weights {path}: its adapters are of other teachers or losses ({len(odd)} tensors, "
            f"first {odd[0]}): give the config.yaml of its run as --config-file"
        )
    parts.load_state_dict(adapters)
    return True


def load_records(cfg: CfgNode, name: str) -> list[dict]:
    """The images of a registered dataset, in Detectron2's standard format.

    Raises:
        AIDError: it is unknown, cannot be loaded, has other classes than the model, or no labels.
    """
    if name not in DatasetCatalog.list():
        known = ", ".join(dict.fromkeys((*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN)))
        raise AIDError(
            f"--dataset {name!r} is not registered: choose another one (the config's are {known}), "
            "or name the file that registers it by --register"
        )
    unmasked = cfg.clone()
    unmasked.defrost()
    unmasked.MODEL.MASK_ON = False  # no mask is looked at
    check_dataset(unmasked, "TRAIN", name)
    return DatasetCatalog.get(name)


def choose_images(records: list[dict], wanted: str) -> list[dict]:
    """Some images of a dataset.

    Args:
        records: of the dataset.
        wanted: how many, or file names with commas between them.

    Raises:
        AIDError: a name that no image has, or no positive number.
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
    """So many records, evenly spaced."""
    count = min(count, len(records))
    return [records[i * len(records) // count] for i in range(count)]
