"""The training stream: independent of workers, and resumable at every iteration."""

import random
import re
from itertools import islice

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.utils import comm

from aid.config import load_config
from aid.data.build import build_test_loader, build_train_loader, start_at
from aid.data.seeding import seed_all, seeded
from aid.engine import AIDTrainer
from aid.utils.errors import AIDError, main_with_clear_errors


@pytest.fixture
def loader_config(tiny_config, toy_dataset):
    def make(opts=()):
        keys = ["DATASETS.TRAIN", (toy_dataset,), "SOLVER.IMS_PER_BATCH", 2]
        keys += ["DATALOADER.NUM_WORKERS", 0, "INPUT.MIN_SIZE_TRAIN", (48, 56, 64)]
        return load_config(tiny_config("faster_rcnn", [*keys, *opts]))

    return make


def take(cfg, count, start_iter=0):
    loader = build_train_loader(cfg)
    start_at(loader, cfg, start_iter)
    return list(islice(loader, count))


def are_equal(a, b):
    return all(
        x["file_name"] == y["file_name"] and torch.equal(x["image"], y["image"])
        for p, q in zip(a, b, strict=True)
        for x, y in zip(p, q, strict=True)
    )


@pytest.mark.parametrize("grouping", [True, False])
def test_stream_resumed_at_any_iteration_continues_unchanged(loader_config, grouping):
    cfg = loader_config(["DATALOADER.ASPECT_RATIO_GROUPING", grouping])
    whole = take(cfg, 12)
    for start in range(12):
        assert are_equal(take(cfg, 12 - start, start), whole[start:])
    start_at([], cfg, 3)  # a loader of another kind


def test_stream_does_not_depend_on_the_number_of_workers(loader_config):
    alone = take(loader_config(), 6)
    assert are_equal(take(loader_config(["DATALOADER.NUM_WORKERS", 2]), 6), alone)


def test_streams_with_different_seeds_differ(loader_config):
    assert not are_equal(take(loader_config(), 3), take(loader_config(["SEED", 4]), 3))


def test_batches_have_one_orientation_and_epochs_are_complete(loader_config):
    batches = take(loader_config(), 28)
    for batch in batches:
        assert len({x["width"] > x["height"] for x in batch}) == 1
    counts = {}
    for x in (x for batch in batches for x in batch):
        counts[x["file_name"]] = counts.get(x["file_name"], 0) + 1
    assert len(counts) == 7 and min(counts.values()) >= 7 and max(counts.values()) <= 9


def test_augmentation_varies_between_epochs(loader_config):
    sizes = {}
    for x in (x for batch in take(loader_config(), 28) for x in batch):
        sizes.setdefault(x["file_name"], set()).add(tuple(x["image"].shape))
    assert all(len(s) > 1 for s in sizes.values())


def test_loading_preserves_the_random_state(loader_config):
    seed_all(1)
    expected = random.random(), np.random.rand(), torch.rand(1)
    seed_all(1)
    take(loader_config(), 2)
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected


def test_seeded_numbers_depend_only_on_the_key():
    draws = []
    for key in ((1, 2), (1, 2), (2, 1)):
        with seeded(*key):
            draws.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_each_epoch_and_resume_their_own_streams(
    processes, loader_config, monkeypatch
):
    cfg = loader_config(
        ["SOLVER.IMS_PER_BATCH", processes, "DATALOADER.ASPECT_RATIO_GROUPING", False]
    )
    monkeypatch.setattr(comm, "get_world_size", lambda: processes)
    monkeypatch.setattr(comm, "all_gather", lambda x: [x])  # processes with equal seeds agree
    counts = {}
    for rank in range(processes):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        stream = take(cfg, 7)  # 7 images per process: as many epochs as processes
        assert are_equal(take(cfg, 4, start_iter=3), stream[3:])
        for (sample,) in stream:
            counts[sample["file_name"]] = counts.get(sample["file_name"], 0) + 1
    assert len(counts) == 7 and set(counts.values()) == {processes}


def test_micro_batches_partition_the_batch_of_an_iteration(loader_config):
    """A run resumed at iteration 3 continues at micro-batch 6 of the stream."""
    opts = ["DATALOADER.ASPECT_RATIO_GROUPING", False]
    whole = take(loader_config(opts), 6)
    cfg = loader_config([*opts, "SOLVER.ACCUMULATION_STEPS", 2])
    micro = take(cfg, 12)
    assert all(len(batch) == 1 for batch in micro)
    assert are_equal([[x, y] for (x,), (y,) in zip(micro[::2], micro[1::2], strict=True)], whole)
    assert are_equal(take(cfg, 6, start_iter=3), micro[6:])


@pytest.mark.parametrize(
    "processes, steps, message",
    [
        (4, 1, "IMS_PER_BATCH 2 is not divisible.*processes, 4, times .*STEPS, 1"),
        (1, 4, "IMS_PER_BATCH 2 is not divisible.*processes, 1, times .*STEPS, 4"),
        (1, 0, "ACCUMULATION_STEPS is 0: it must be 1 or more"),
    ],
)
def test_indivisible_batch_size_is_refused(processes, steps, message, loader_config, monkeypatch):
    cfg = loader_config(["SOLVER.ACCUMULATION_STEPS", steps])
    monkeypatch.setattr(comm, "get_world_size", lambda: processes)
    with pytest.raises(AIDError, match=message):
        AIDTrainer(cfg)


@pytest.mark.parametrize("workers", [0, 2])
def test_error_names_a_truncated_image(loader_config, toy_dataset, workers, capsys):
    cfg = loader_config(["DATALOADER.NUM_WORKERS", workers])
    path = DatasetCatalog.get(toy_dataset)[4]["file_name"]
    with open(path, "r+b") as f:
        f.truncate(600)
    for loader in (build_train_loader(cfg), build_test_loader(cfg, toy_dataset)):
        batches = iter(loader)
        with pytest.raises(SystemExit) as stopped:
            main_with_clear_errors(lambda stream: list(stream))(batches)
        if workers:  # torch waits for 5 s for each worker of a loader that is garbage
            batches._shutdown_workers()
        assert stopped.value.code == 2
        (line,) = (x for x in capsys.readouterr().err.splitlines() if x.startswith("error: "))
        assert re.match(rf"error: image {path} cannot be used: .*: replace the file, or", line)


def test_config_error_is_not_reported_as_an_image_error(loader_config, toy_dataset):
    cfg = loader_config(["INPUT.FORMAT", "FOO"])
    with pytest.raises(ValueError, match="FOO|mode"):
        list(build_test_loader(cfg, toy_dataset))
