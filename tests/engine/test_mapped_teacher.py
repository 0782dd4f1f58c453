"""Training runs with a teacher whose classes are mapped."""

import json
import os

import pytest
import torch
from detectron2.modeling import build_model

from aid.config import load_config
from aid.engine import AIDTrainer

# One of the teacher's 4 classes is background; the toy data have Car, Pedestrian and Cyclist.
ENTRIES = ["3: Car", "0: Pedestrian", "1: Pedestrian"]
TARGETS = {0: 1, 1: 1, 3: 0}


@pytest.fixture
def mapped_run(run_config, tiny_config, tmp_path):
    """Function (output, opts) -> frozen config of a run of 4 iterations."""
    path = tiny_config("retinanet", ["MODEL.RETINANET.NUM_CLASSES", 4], name="other_classes")
    torch.manual_seed(9)
    teacher = build_model(load_config(path))
    torch.nn.init.normal_(teacher.head.cls_score.weight, std=0.5)
    torch.save({"model": teacher.state_dict()}, tmp_path / "other_classes.pth")
    keys = ["TEACHER.CONFIG_FILE", path, "TEACHER.WEIGHTS", str(tmp_path / "other_classes.pth")]
    keys += ["TEACHER.CLASS_MAP", ENTRIES]
    return lambda output, opts=(): run_config(output, "retinanet", opts=[*keys, *opts])


def detections(folder: str) -> list[dict]:
    with open(os.path.join(folder, "inference", "coco_instances_results.json")) as f:
        return json.load(f)


def test_mapped_teacher_is_evaluated_on_the_students_classes(mapped_run):
    opts = ["TEACHER.EVAL_FIRST", True, "SOLVER.MAX_ITER", 1, "TEST.DETECTIONS_PER_IMAGE", 20]
    cfg = mapped_run("run", opts)
    trainer = AIDTrainer(cfg)
    trainer.resume_or_load(False)
    trainer.train()
    results = detections(os.path.join(cfg.OUTPUT_DIR, "teacher"))
    assert {x["category_id"] for x in results} == set(TARGETS.values())
    with open(os.path.join(cfg.OUTPUT_DIR, "teacher", "metrics.json")) as f:
        assert json.load(f)["bbox/AP-Car"] >= 0
