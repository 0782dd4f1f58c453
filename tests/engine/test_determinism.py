"""Runs with equal seeds are equal bit for bit on the CPU."""

from argparse import Namespace

import pytest
import torch
from detectron2.engine import HookBase

from aid.engine import AIDTrainer
from aid.engine.output_folder import start_records

ITERATIONS = 12


class KeepLosses(HookBase):
    """Hook that keeps every loss of every iteration."""

    def __init__(self):
        self.losses = []

    def after_step(self):
        latest = self.trainer.storage.latest()
        self.losses.append({name: value for name, (value, _) in latest.items() if "loss" in name})


def losses(cfg) -> list[dict[str, float]]:
    """Losses of a run, in a process that drew other random numbers before."""
    torch.rand(99)
    start_records(cfg, Namespace(eval_only=False, resume=False))
    trainer = AIDTrainer(cfg)
    trainer.resume_or_load(resume=False)
    kept = KeepLosses()
    trainer.register_hooks([kept])
    trainer.train()
    return kept.losses


@pytest.mark.parametrize(
    "student, teacher, workers", [("faster_rcnn", "retinanet", 0), ("retinanet", None, 2)]
)
def test_runs_with_equal_seeds_have_equal_losses(student, teacher, workers, run_config):
    opts = ["SOLVER.MAX_ITER", ITERATIONS, "SOLVER.CHECKPOINT_PERIOD", 1000, "DATASETS.TEST", ()]
    first = losses(run_config("first", student, teacher, opts))
    opts += ["DATALOADER.NUM_WORKERS", workers]
    assert losses(run_config("second", student, teacher, opts)) == first
    assert len(first) == ITERATIONS
    for name in ("total_loss", "loss_distill_feature"):
        assert len({step[name] for step in first}) == ITERATIONS  # every step differs


def test_runs_with_different_seeds_differ(run_config):
    opts = ["SOLVER.MAX_ITER", 1, "DATASETS.TEST", ()]
    first, second = (
        losses(run_config(f"seed_{seed}", opts=[*opts, "SEED", seed])) for seed in (1, 2)
    )
    assert first[0]["total_loss"] != second[0]["total_loss"]
