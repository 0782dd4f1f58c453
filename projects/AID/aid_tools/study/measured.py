"""What all measurements on finished runs share: config and data of the run, and kept results."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from aid.config import load_config
from aid.data.kitti import register_kitti
from aid.data.register import register_from_file
from aid.utils.errors import AIDError

from .grid import Job

__all__ = ["config_of", "final_weights", "kept", "training_set"]


def kept(job: Job, name: str, measure: Callable[[], list[dict]]) -> list[dict]:
    """What ``measure`` finds, from a file in the run's folder if it is there already.

    Args:
        job: a finished run.
        name: of the JSON file.
        measure: without arguments.
    """
    path = os.path.join(job.folder, name)
    if not os.path.isfile(path):
        found = measure()
        with open(f"{path}.part", "w") as f:
            json.dump(found, f, indent=1)
        os.replace(f"{path}.part", path)
    with open(path) as f:
        return json.load(f)


def config_of(job: Job, *options: object) -> CfgNode:
    """The run's config, on the CPU; what its files register is there afterwards.

    Args:
        job: a finished run.
        options: further overrides, keys and values in turn.

    Raises:
        AIDError: a file is missing or malformed.
    """
    for path in job.register:
        register_from_file(path)
    return load_config(job.config, [*job.options, "MODEL.DEVICE", "cpu", *options])


@contextmanager
def training_set(job: Job) -> Iterator[str]:
    """The name under which the run's training images are registered, inside."""
    name = f"{job.folder}/train"
    register_kitti(name, os.path.join(job.scenes.folder, "synthetic_kitti"), "train", "-")
    try:
        yield name
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def final_weights(job: Job) -> str:
    """Path of the run's checkpoint.

    Raises:
        AIDError: it is not there.
    """
    path = os.path.join(job.folder, "model_final.pth")
    if not os.path.isfile(path):
        raise AIDError(
            f"{path} does not exist, but is measured: delete {job.folder} and run the study again"
        )
    return path
