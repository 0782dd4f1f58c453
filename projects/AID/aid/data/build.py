"""Data loaders of Detectron2; the training loader is resumable.

Detectron2 restarts its sampler and its workers' random numbers when a run is resumed. Here batch i
depends neither on interruptions nor on the number of workers: the augmentation of a sample is
seeded by its position in the stream, and a resumed stream skips the consumed samples.
"""

from collections.abc import Iterator

import torch
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetFromList,
    DatasetMapper,
    MapDataset,
    build_detection_test_loader,
)
from detectron2.data.build import trivial_batch_collator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from torch.utils.data import DataLoader, Dataset, Sampler

from ..checkpoint import check_pickle, clear_load_errors
from ..utils.d2 import train_loader_from_config
from ..utils.errors import AIDError
from .detections import DetectionMapper, with_detections
from .images import check_crops, check_header, clear_image_errors
from .seeding import seeded

__all__ = ["CheckedMapper", "build_test_loader", "build_train_loader", "micro_batch_size"]

# Suffix of seeds that separates samples from iterations, which SeedStep seeds (engine/hooks.py).
SAMPLES = 1


def build_train_loader(cfg: CfgNode, start_iter: int = 0) -> DataLoader:
    """Build the training loader, with the sampler, mapper and grouping of Detectron2.

    Args:
        cfg: a config with SEED >= 0.
        start_iter: iteration to start at; the batches of earlier iterations are skipped.

    Returns:
        Infinite loader of micro-batches, SOLVER.ACCUMULATION_STEPS for each iteration.

    Raises:
        AIDError: the batch is not divisible by processes and micro-batches, a proposal file is not
            safe to unpickle, or TEACHER.DETECTIONS cannot be used.
    """
    _check_proposals(cfg, "PROPOSAL_FILES_TRAIN")
    detections = cfg.TEACHER.DETECTIONS
    mapper = DetectionMapper(cfg, True) if detections else None  # None: Detectron2's
    with seeded(cfg.SEED):  # the sampler draws a seed
        parts = train_loader_from_config(cfg, mapper)
    dicts = parts["dataset"]
    if detections:
        dicts = with_detections(detections, cfg.DATASETS.TRAIN, dicts)
    grouping = parts["aspect_ratio_grouping"]
    batches = _Batches(
        parts["sampler"],
        [not grouping or x["width"] > x["height"] for x in dicts],
        micro_batch_size(cfg),
        start_iter * cfg.SOLVER.ACCUMULATION_STEPS,
    )
    dataset = MapDataset(DatasetFromList(dicts, copy=False), CheckedMapper(parts["mapper"]))
    return DataLoader(
        _SeededDataset(dataset, cfg.SEED, comm.get_rank()),
        batch_sampler=batches,
        num_workers=parts["num_workers"],
        collate_fn=trivial_batch_collator,
        generator=torch.Generator(),  # the workers' seed does not advance the global generator
    )


def build_test_loader(cfg: CfgNode, dataset_name: str) -> DataLoader:
    """Build Detectron2's test loader of ``dataset_name``.

    Raises:
        AIDError: a proposal file is not safe to unpickle.
    """
    _check_proposals(cfg, "PROPOSAL_FILES_TEST")
    mapper = CheckedMapper(DatasetMapper(cfg, is_train=False))
    return build_detection_test_loader(cfg, dataset_name, mapper=mapper)


def _check_proposals(cfg: CfgNode, key: str) -> None:
    """Check the pickles of precomputed proposals, which Detectron2 reads unchecked."""
    for path in cfg.DATASETS[key] if cfg.MODEL.LOAD_PROPOSALS else ():
        with clear_load_errors(f"DATASETS.{key}", path):
            check_pickle(PathManager.get_local_path(path))


def micro_batch_size(cfg: CfgNode) -> int:
    """Compute the number of images per forward pass of one process.

    Raises:
        AIDError: the batch is not divisible by processes and micro-batches.
    """
    images, steps = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATION_STEPS
    if steps < 1:
        raise AIDError(f"SOLVER.ACCUMULATION_STEPS is {steps}: it must be 1 or more")
    size, rest = divmod(images, comm.get_world_size() * steps)
    if rest or size < 1:
        raise AIDError(
            f"SOLVER.IMS_PER_BATCH {images} is not divisible by the number of processes, "
            f"{comm.get_world_size()}, times SOLVER.ACCUMULATION_STEPS, {steps}: change one of them"
        )
    return size


class CheckedMapper:
    """Detectron2's mapper, with an AIDError that names the file of an image that cannot be used.

    Earlier checks read the headers of images at most. In training objects without a usable mask are
    left out if masks are trained.
    """

    def __init__(self, mapper: DatasetMapper):
        """
        Args:
            mapper: whose augmentations are checked, too.
        """
        self._mapper = mapper
        self._longest = check_crops(mapper.augmentations)
        self._needs_masks = mapper.use_instance_mask and mapper.is_train

    def __call__(self, record: dict) -> dict | None:
        if self._needs_masks and "annotations" in record:
            labels = [x for x in record["annotations"] if x.get("segmentation")]
            record = {**record, "annotations": labels}
        with clear_image_errors(record["file_name"]):
            check_header(record["file_name"], self._longest)
            return self._mapper(record)


class _Batches(Sampler):
    """Infinite batches of (position in the stream, index), each of one orientation."""

    def __init__(self, sampler: Sampler, landscape: list[bool], batch_size: int, consumed: int):
        self._sampler = sampler
        self._landscape = landscape
        self._batch_size = batch_size
        self._consumed = consumed

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        buckets = {True: [], False: []}
        num_batches = 0
        for position, index in enumerate(self._sampler):
            bucket = buckets[self._landscape[index]]
            bucket.append((position, index))
            if len(bucket) == self._batch_size:
                if num_batches >= self._consumed:
                    yield list(bucket)
                num_batches += 1
                bucket.clear()


class _SeededDataset(Dataset):
    """Dataset that seeds the mapping of each sample by the sample's position in the stream."""

    def __init__(self, dataset: Dataset, *key: int):
        self._dataset = dataset
        self._key = key

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, position_and_index: tuple[int, int]) -> dict:
        position, index = position_and_index
        with seeded(*self._key, position, SAMPLES):
            return self._dataset[index]
