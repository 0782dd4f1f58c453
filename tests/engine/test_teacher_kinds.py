"""Training runs with the teacher of a LazyConfig and with a feature teacher."""

import os

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from aid.config import load_config
from aid.engine import AIDTrainer, setup, start_run
from aid.utils.errors import AIDError
from aid_tools.train_arguments import argument_parser

LAZY = """
from detectron2.config import LazyCall as L
from detectron2.data import DatasetMapper, transforms as T
from detectron2.modeling import build_model

from aid.config import load_config


def build(path):
    return build_model(load_config(path))


model = L(build)(path={path!r})
resize = L(T.ResizeShortestEdge)(short_edge_length=50, max_size=70)
mapper = L(DatasetMapper)(is_train=False, augmentations=[resize], image_format="RGB")
dataloader = dict(test=dict(mapper=mapper))
"""


def test_lazyconfig_teacher_equals_the_same_teacher_in_yaml(run_config, tmp_path):
    cfg = run_config("run", opts=["TEACHER.EVAL_FIRST", True, "SOLVER.MAX_ITER", 2])
    yaml = load_config(cfg.TEACHER.CONFIG_FILE, ["INPUT.MIN_SIZE_TEST", 50])
    yaml.INPUT.MAX_SIZE_TEST = 70
    (tmp_path / "same.yaml").write_text(yaml.dump())
    (tmp_path / "lazy.py").write_text(LAZY.format(path=cfg.TEACHER.CONFIG_FILE))
    (tmp_path / "run.yaml").write_text(cfg.dump())

    def run(teacher: str) -> tuple:
        named = ["TEACHER.CONFIG_FILE", teacher, "OUTPUT_DIR", str(tmp_path / teacher[:4])]
        cfg = load_config(str(tmp_path / "run.yaml"), named)
        sizes = []

        class Watched(AIDTrainer):
            def test_teachers(self):
                def record(detector, inputs):
                    sizes.append(inputs[0][0]["image"].shape)

                handle = self.model.teacher.detector.register_forward_pre_hook(record)
                results.append(super().test_teachers())
                handle.remove()

        results = []
        torch.manual_seed(0)
        trainer = Watched(cfg)
        trainer.resume_or_load(False)
        trainer.train()
        return results, sizes, trainer.model.state_dict()

    expected, expected_sizes, expected_state = run("same.yaml")
    actual, sizes, state = run("lazy.py")
    assert sizes == expected_sizes and {min(x[1:]) for x in sizes} == {47}  # 70 limits 50 x 75
    assert str(actual) == str(expected)  # compares NaN, too
    assert all(torch.equal(x, expected_state[k]) for k, x in state.items())


def test_run_with_a_feature_teacher_resumes_exactly(run_config, tmp_path):
    torch.jit.script(nn.Conv2d(3, 5, 16, stride=16)).save(tmp_path / "patches.ts")
    opts = ["AID.GRANULARITY", "none", "DISTILLATION.LOSSES", ["FitNetLoss"]]
    cfg = run_config("run", opts=["DATASETS.TEST", (), *opts])
    (tmp_path / "run.yaml").write_text(cfg.dump())
    line = ["--config-file", str(tmp_path / "run.yaml"), "--num-gpus", "0"]
    named = ["TEACHER.CONFIG_FILE", "patches.ts", "TEACHER.WEIGHTS", ""]
    named += ["TEACHER.FEATURES", "['0: p3', '0: p4']"]

    def run(folder: str, iterations: int, *options: str) -> dict:
        steps = ["SOLVER.MAX_ITER", str(iterations), "OUTPUT_DIR", str(tmp_path / folder)]
        args = argument_parser().parse_args([*line, *options, *named, *steps])
        cfg = setup(args)
        trainer = AIDTrainer(cfg)
        trainer.resume_or_load(args.resume)
        start_run(cfg, args.resume)
        trainer.train()
        return torch.load(tmp_path / folder / "model_final.pth")

    expected = run("whole", 4)
    run("stopped", 2)
    actual = run("stopped", 4, "--resume")
    for part in ("model", "distillation"):
        assert all(torch.equal(actual[part][k], x) for k, x in expected[part].items())
    plain = build_model(cfg)
    assert expected["model"].keys() == plain.state_dict().keys()
    written = load_config(os.path.join(tmp_path, "whole", "config.yaml"))
    assert written.TEACHER.CONFIG_FILE == str(tmp_path / "patches.ts")
    os.rename(tmp_path / "patches.ts", tmp_path / "other.ts")
    written.TEACHER.CONFIG_FILE = str(tmp_path / "other.ts")  # not named on a command line
    with pytest.raises(AIDError, match="other.ts is a program, which no config file can name"):
        build_model(cfg).build_distillation(written)
