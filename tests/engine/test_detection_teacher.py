"""Runs with a teacher of which only detections are known."""

import json

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model

from aid.engine import AIDTrainer


@pytest.fixture
def given(toy_dataset, tmp_path):
    """Options of a teacher that detects every object 1 pixel too far right."""
    results = [
        {
            "image_id": x["image_id"],
            "category_id": a["category_id"],
            "bbox": [x1 + 1, y1, x2 - x1, y2 - y1],
            "score": 0.8,
        }
        for x in DatasetCatalog.get(toy_dataset)
        for a in x["annotations"]
        for x1, y1, x2, y2 in [a["bbox"]]
    ]
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results))
    keys = ["TEACHER.CONFIG_FILE", "", "TEACHER.WEIGHTS", "", "TEACHER.DETECTIONS", str(path)]
    return [*keys, "DISTILLATION.LOSSES", ["ResponseLoss"], "DISTILLATION.BALANCE", 3.0]


def train(cfg, stop_at=None, resume=False) -> dict:
    """Train, or stop after ``stop_at`` iterations; return the last checkpoint."""
    torch.manual_seed(cfg.SEED)
    trainer = AIDTrainer(cfg)
    trainer.resume_or_load(resume)
    if stop_at:
        trainer.max_iter = stop_at
    trainer.train()
    return torch.load(trainer.checkpointer.get_checkpoint_file())


@pytest.mark.parametrize("kind", ["faster_rcnn", "gfl"])
def test_a_resumed_run_has_the_weights_of_an_uninterrupted_one(kind, run_config, given):
    opts = ["DATASETS.TEST", (), *given]
    expected = train(run_config("whole", kind, opts=opts))
    cfg = run_config("stopped", kind, opts=opts)
    train(cfg, stop_at=2)
    found = train(cfg, resume=True)
    for part in ("model", "distillation"):
        assert all(torch.equal(found[part][k], x) for k, x in expected[part].items())
    assert expected["model"].keys() == build_model(cfg).state_dict().keys()


def test_without_lambda_a_run_is_that_of_the_plain_detector(run_config, given):
    opts = ["DATASETS.TEST", (), *given, "DISTILLATION.BALANCE", 0.0]
    taught = train(run_config("taught", opts=[*opts, "DISTILLATION.WEIGHT", 0.0]))
    plain = ["MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "TEACHER.DETECTIONS", ""]
    expected = train(run_config("plain", opts=[*opts, *plain]))
    assert all(torch.equal(taught["model"][k], x) for k, x in expected["model"].items())
