"""Data loaders of Detectron2; the training loader is resumable.

Detectron2 restarts its sampler and its workers' random numbers when a run is resumed. Here batch i
depends neither on interruptions nor on the number of workers: the augmentation of a sample is
seeded by its position in the stream, and a resumed stream skips the consumed samples.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetFromList,
    DatasetMapper,
    MapDataset,
    build_detection_test_loader,
)
from detectron2.data.build import trivial_batch_collator
from detectron2.data.samplers import TrainingSampler
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from torch.utils.data import DataLoader, Dataset, Sampler

from ..checkpoint import check_pickle, clear_load_errors
from ..utils.d2 import train_loader_from_config
from ..utils.errors import AIDError, check_one_or_more
from .detections import DetectionMapper, with_detections
from .ignore_regions import IgnoreRegionsMapper, log_regions
from .images import check_crops, check_header, clear_image_errors
from .seeding import seeded
from .unlabeled import num_unlabeled, unlabeled_records

__all__ = [
    "CheckedMapper",
    "build_test_loader",
    "build_train_loader",
    "micro_batch_size",
    "start_at",
]

# Suffixes of seeds that separate samples from iterations, which SeedStep seeds (engine/hooks.py).
SAMPLES = 1
UNLABELED_SAMPLES = 2


def build_train_loader(cfg: CfgNode) -> DataLoader:
    """Build the training loader, with the sampler, mapper and grouping of Detectron2.

    Args:
        cfg: a config with SEED >= 0.

    Returns:
        Infinite loader of micro-batches, SOLVER.ACCUMULATION_STEPS for each iteration. The images
        of DATASETS.UNLABELED are the last ones of each, see :func:`num_unlabeled`.

    Raises:
        AIDError: the batch is not divisible by processes and micro-batches, the share of unlabeled
            images cannot be had, a proposal file is not safe to unpickle, or TEACHER.DETECTIONS
            cannot be used.
    """
    _check_proposals(cfg, "PROPOSAL_FILES_TRAIN")
    size = micro_batch_size(cfg)
    unlabeled_size = num_unlabeled(cfg, size)
    unlabeled = unlabeled_records(cfg)
    detections = cfg.TEACHER.DETECTIONS
    mapper = None  # Detectron2's
    if cfg.INPUT.IGNORE_REGIONS:
        mapper = IgnoreRegionsMapper(cfg, True)
    elif detections:
        mapper = DetectionMapper(cfg, True)
    with seeded(cfg.SEED):  # the samplers draw seeds
        parts = train_loader_from_config(cfg, mapper)
        sampler = TrainingSampler(len(unlabeled)) if unlabeled else ()
    labeled = parts["dataset"]
    if detections:
        labeled = with_detections(detections, cfg.DATASETS.TRAIN, labeled)
    if cfg.INPUT.IGNORE_REGIONS and comm.is_main_process():
        log_regions(labeled)

    def landscape(records: list[dict]) -> list[bool]:
        return [not parts["aspect_ratio_grouping"] or x["width"] > x["height"] for x in records]

    batches = _Batches(
        _Stream(parts["sampler"], landscape(labeled)),
        size - unlabeled_size,
        _Stream(sampler, landscape(unlabeled), first=len(labeled)),
        unlabeled_size,
    )
    records = [*labeled, *unlabeled] if unlabeled else labeled
    dataset = MapDataset(DatasetFromList(records, copy=False), CheckedMapper(parts["mapper"]))
    return DataLoader(
        _SeededDataset(dataset, len(labeled), cfg.SEED, comm.get_rank()),
        batch_sampler=batches,
        num_workers=parts["num_workers"],
        collate_fn=trivial_batch_collator,
        generator=torch.Generator(),  # the workers' seed does not advance the global generator
    )


def start_at(loader: DataLoader, cfg: CfgNode, iteration: int) -> None:
    """Let a training loader that was not read from skip the batches before an iteration.

    Args:
        loader: of :func:`build_train_loader`; others are left as they are.
        cfg: config of the loader.
        iteration: counted from 0.
    """
    batches = getattr(loader, "batch_sampler", None)
    if isinstance(batches, _Batches):
        batches.consumed = iteration * cfg.SOLVER.ACCUMULATION_STEPS


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
    check_one_or_more("SOLVER.ACCUMULATION_STEPS", steps)
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
    left out if masks are trained, except for regions to ignore, which need none.
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
            labels = record["annotations"]
            labels = [x for x in labels if x.get("segmentation") or x.get("iscrowd", 0)]
            record = {**record, "annotations": labels}
        with clear_image_errors(record["file_name"]):
            check_header(record["file_name"], self._longest)
            return self._mapper(record)


@dataclass
class _Stream:
    """Endless stream of images.

    Attributes:
        sampler: of indices; it restarts whenever it is iterated over.
        landscape: of each index, whether the image is wider than high.
        first: index of the first image in the dataset of the loader.
    """

    sampler: Iterable[int]
    landscape: list[bool]
    first: int = 0

    def of_orientation(self, landscape: bool) -> Iterator[tuple[int, int]]:
        """Position in the stream and index of each image of an orientation; of all without any."""
        any_fits = landscape in self.landscape
        for position, index in enumerate(self.sampler):
            if self.landscape[index] == landscape or not any_fits:
                yield position, self.first + index


@dataclass(eq=False)
class _Batches(Sampler):
    """Infinite batches of (position in its stream, index), each of one orientation.

    Attributes:
        labeled, unlabeled: streams of images.
        num_labeled, num_unlabeled: number of images of each in a batch.
        consumed: number of batches to skip.
    """

    labeled: _Stream
    num_labeled: int
    unlabeled: _Stream
    num_unlabeled: int
    consumed: int = 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return islice(self._all(), self.consumed, None)

    def _all(self) -> Iterator[list[tuple[int, int]]]:
        buckets = {True: [], False: []}
        unlabeled = {x: self.unlabeled.of_orientation(x) for x in buckets}
        for position, index in enumerate(self.labeled.sampler):
            landscape = self.labeled.landscape[index]
            bucket = buckets[landscape]
            bucket.append((position, index))
            if len(bucket) == self.num_labeled:
                yield [*bucket, *islice(unlabeled[landscape], self.num_unlabeled)]
                bucket.clear()


class _SeededDataset(Dataset):
    """Dataset that seeds the mapping of each sample by the sample's position in its stream."""

    def __init__(self, dataset: Dataset, num_labeled: int, *key: int):
        self._dataset = dataset
        self._num_labeled = num_labeled
        self._key = key

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, position_and_index: tuple[int, int]) -> dict:
        position, index = position_and_index
        stream = SAMPLES if index < self._num_labeled else UNLABELED_SAMPLES
        with seeded(*self._key, position, stream):
            return self._dataset[index]
