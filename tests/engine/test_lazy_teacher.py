"""Runs with a LazyConfig's teacher are those with the same teacher's YAML config."""

import torch

from aid.config import load_config
from aid.engine import AIDTrainer

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


def test_a_run_and_its_evaluation_are_those_of_the_yaml_config(run_config, tmp_path):
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
                def see(detector, inputs):
                    sizes.append(inputs[0][0]["image"].shape)

                handle = self.model.teacher.detector.register_forward_pre_hook(see)
                results.append(super().test_teachers())
                handle.remove()

        results = []
        torch.manual_seed(0)
        trainer = Watched(cfg)
        trainer.resume_or_load(False)
        trainer.train()
        return results, sizes, trainer.model.state_dict()

    (expected, expected_sizes, ours), (found, sizes, theirs) = run("same.yaml"), run("lazy.py")
    assert sizes == expected_sizes and {min(x[1:]) for x in sizes} == {47}  # 70 limits 50 x 75
    assert str(found) == str(expected)  # with NaN
    assert all(torch.equal(x, ours[k]) for k, x in theirs.items())
