"""Fixtures: configs of runs of a few iterations."""

import os

import pytest

from aid.engine import setup, start_run
from aid_tools.train_arguments import argument_parser


@pytest.fixture
def run_config(student_config, toy_dataset, tmp_path):
    """A function (output, student, teacher, opts) -> frozen config of a run of 4 iterations."""

    def make(output: str, student="faster_rcnn", teacher=None, opts=()):
        keys = ["DATASETS.TRAIN", (toy_dataset,), "DATASETS.TEST", (toy_dataset,)]
        keys += ["SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 4, "SOLVER.CHECKPOINT_PERIOD", 1]
        keys += ["SOLVER.BASE_LR", 0.01, "SOLVER.WARMUP_ITERS", 2, "DATALOADER.NUM_WORKERS", 0]
        keys += ["INPUT.MIN_SIZE_TRAIN", (48, 64), "OUTPUT_DIR", str(tmp_path / output)]
        cfg = student_config(student, teacher, [*keys, *opts])
        os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
        cfg.freeze()
        return cfg

    return make


@pytest.fixture
def configure(tiny_config, toy_dataset, tmp_path):
    """A function (options of train_net.py, config overrides) -> config of a run on the toy data."""

    def call(*options, opts=(), start=True):
        keys = ["DATASETS.TRAIN", (toy_dataset,), "DATASETS.TEST", (toy_dataset,)]
        (tmp_path / "to_evaluate.pth").write_bytes(b"")
        weights = str(tmp_path / "to_evaluate.pth") if "--eval-only" in options else ""
        keys += ["OUTPUT_DIR", str(tmp_path / "out"), "MODEL.WEIGHTS", weights, *opts]
        path = tiny_config("faster_rcnn", keys)
        args = argument_parser().parse_args(["--config-file", path, *options])
        cfg = setup(args)
        if start and not args.eval_only:
            start_run(cfg, args.resume)
        return cfg

    return call
