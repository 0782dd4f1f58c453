"""Common parts of measurements on finished runs: config, data and saved results."""

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

from ..files import write_json
from .grid import Job

__all__ = ["config_of", "final_weights", "kept", "training_set"]


def kept(job: Job, name: str, measure: Callable[[], list[dict]]) -> list[dict]:
    """Return the result of ``measure``, saved in the run's folder and read from there if present.

    Args:
        job: a finished run.
        name: name of the JSON file.
        measure: function that measures; called if the file does not exist.
    """
    path = os.path.join(job.folder, name)
    if not os.path.isfile(path):
        write_json(path, measure())
    with open(path) as f:
        return json.load(f)


def config_of(job: Job, *options: object) -> CfgNode:
    """Load the run's config for the CPU, after running the files that it registers.

    Args:
        job: a finished run.
        options: further overrides, KEY VALUE in turn.

    Raises:
        AIDError: a file is missing or malformed.
    """
    for path in job.register:
        register_from_file(path)
    return load_config(job.config, [*job.options, "MODEL.DEVICE", "cpu", *options])


@contextmanager
def training_set(job: Job) -> Iterator[str]:
    """Register the run's training images inside the context, and yield their dataset name."""
    name = f"{job.folder}/train"
    register_kitti(name, job.scenes.root, "train", "-")
    try:
        yield name
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def final_weights(job: Job) -> str:
    """Path of the run's checkpoint.

    Raises:
        AIDError: the checkpoint does not exist.
    """
    path = os.path.join(job.folder, "model_final.pth")
    if not os.path.isfile(path):
        raise AIDError(
            f"{path} is needed for a measurement but does not exist: delete {job.folder} and run "
            "the study again"
        )
    return path
