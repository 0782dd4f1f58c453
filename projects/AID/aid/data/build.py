"""Detectron2's loaders; that of training made resumable.

Detectron2 restarts its sampler and its workers' random numbers at a resume. Here batch number i is
the same whether the run was interrupted or not, and whatever the number of workers: each sample's
augmentation is seeded by its place in the stream, and a resumed stream skips what was consumed.
"""

from collections.abc import Callable, Iterator

import torch
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetFromList,
    DatasetMapper,
    MapDataset,
    build_detection_test_loader,
)
from detectron2.data.build import _train_loader_from_config, trivial_batch_collator
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler

from ..checkpoint import check_pickle, clear_load_errors
from ..utils.errors import AIDError
from .seeding import seeded

__all__ = ["build_test_loader", "build_train_loader", "micro_batch_size"]

# Keeps the random numbers of samples apart from those of iterations, see engine/hooks.py.
SAMPLES = 1


def build_train_loader(cfg: CfgNode, start_iter: int = 0) -> DataLoader:
    """The loader that Detectron2 builds from ``cfg``, starting at iteration ``start_iter``.

    Sampler, mapper and grouping by aspect ratio are those that the config names.

    Args:
        cfg: a config with SEED >= 0.
        start_iter: number of iterations whose batches were consumed before.

    Returns:
        Endless micro-batches, of which an iteration takes SOLVER.ACCUMULATION_STEPS.

    Raises:
        AIDError: the batch cannot be divided among processes and micro-batches, or a file of
            proposals could run code.
    """
    _check_proposals(cfg, "PROPOSAL_FILES_TRAIN")
    with seeded(cfg.SEED):  # for the seed that the sampler draws
        parts = _train_loader_from_config(cfg)
    dicts = parts["dataset"]
    grouping = parts["aspect_ratio_grouping"]
    batches = _Batches(
        parts["sampler"],
        [not grouping or x["width"] > x["height"] for x in dicts],
        micro_batch_size(cfg),
        start_iter * cfg.SOLVER.ACCUMULATION_STEPS,
    )
    dataset = MapDataset(DatasetFromList(dicts, copy=False), _NamesFile(parts["mapper"]))
    return DataLoader(
        _SeededDataset(dataset, cfg.SEED, comm.get_rank()),
        batch_sampler=batches,
        num_workers=parts["num_workers"],
        collate_fn=trivial_batch_collator,
        generator=torch.Generator(),  # of its own: a loader draws a seed for its workers
    )


def build_test_loader(cfg: CfgNode, dataset_name: str) -> DataLoader:
    """The loader that Detectron2 builds to test on ``dataset_name``.

    Raises:
        AIDError: a file of proposals could run code.
    """
    _check_proposals(cfg, "PROPOSAL_FILES_TEST")
    mapper = _NamesFile(DatasetMapper(cfg, is_train=False))
    return build_detection_test_loader(cfg, dataset_name, mapper=mapper)


def _check_proposals(cfg: CfgNode, key: str) -> None:
    """Look through the pickles of precomputed proposals, which Detectron2 reads without a look."""
    for path in cfg.DATASETS[key] if cfg.MODEL.LOAD_PROPOSALS else ():
        with clear_load_errors(f"DATASETS.{key}", path):
            check_pickle(PathManager.get_local_path(path))


def micro_batch_size(cfg: CfgNode) -> int:
    """Images that go through the model at once, in one process.

    Raises:
        AIDError: the batch cannot be divided among processes and micro-batches.
    """
    images, steps = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATION_STEPS
    if steps < 1:
        raise AIDError(f"SOLVER.ACCUMULATION_STEPS is {steps}: it must be 1 or more")
    size, rest = divmod(images, comm.get_world_size() * steps)
    if rest or not size:
        raise AIDError(
            f"SOLVER.IMS_PER_BATCH {images} is not divisible by the number of processes, "
            f"{comm.get_world_size()}, times SOLVER.ACCUMULATION_STEPS, {steps}: change one of them"
        )
    return size


class _NamesFile:
    """A mapper whose error names a damaged image, and what to do.

    Images are checked by their headers at first, so that a damaged one is met here.
    """

    def __init__(self, mapper: Callable[[dict], dict | None]):
        self._mapper = mapper

    def __call__(self, record: dict) -> dict | None:
        try:
            return self._mapper(record)
        except (OSError, SyntaxError, ValueError) as error:  # Pillow's, and the mapper's own
            if isinstance(error, SizeMismatchError) or not _is_readable(record["file_name"]):
                raise AIDError(
                    f"image {record['file_name']} cannot be used: {error}: replace the file, or "
                    "take it out of the dataset"
                ) from error
            raise


def _is_readable(file_name: str) -> bool:
    try:
        with Image.open(file_name) as image:
            image.load()
    except (OSError, SyntaxError, ValueError):
        return False
    return True


class _Batches(Sampler):
    """Endless batches of (place in the stream, index), each of one orientation."""

    def __init__(self, sampler: Sampler, landscape: list[bool], batch_size: int, consumed: int):
        self._sampler = sampler
        self._landscape = landscape
        self._batch_size = batch_size
        self._consumed = consumed

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        buckets = {True: [], False: []}
        num_batches = 0
        for place, index in enumerate(self._sampler):
            bucket = buckets[self._landscape[index]]
            bucket.append((place, index))
            if len(bucket) == self._batch_size:
                if num_batches >= self._consumed:
                    yield list(bucket)
                num_batches += 1
                bucket.clear()


class _SeededDataset(Dataset):
    """Maps a sample under random numbers of its own."""

    def __init__(self, dataset: Dataset, *key: int):
        self._dataset = dataset
        self._key = key

    def __getitem__(self, place_and_index: tuple[int, int]) -> dict:
        place, index = place_and_index
        with seeded(*self._key, place, SAMPLES):
            return self._dataset[index]
