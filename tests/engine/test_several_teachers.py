"""Runs with two teachers: resuming, comparison and evaluation."""

import os

import pytest
import torch

from aid.engine import AIDTrainer
from aid.engine.output_folder import check_output_folder
from aid.utils.errors import AIDError


@pytest.fixture
def two_teachers(run_config, further):
    """A function (output, kind of the second, opts) -> frozen config of a run of 4 iterations."""

    def make(output: str, second="faster_rcnn", opts=()):
        return run_config(output, opts=[*further(second), *opts])

    return make


def make_trainer(cfg, resume=False, **options):
    torch.manual_seed(cfg.SEED)
    trainer = AIDTrainer(cfg, **options)
    trainer.resume_or_load(resume)
    return trainer


def test_broken_teacher_is_reported_by_name(two_teachers, caplog):
    trainer = make_trainer(two_teachers("run"))
    with torch.no_grad():  # it predicts background everywhere
        detector = trainer.model.distillers[1].teacher.detector
        detector.roi_heads.box_predictor.cls_score.bias[-1] += 20
    trainer.train()
    (message,) = (
        x.getMessage()
        for x in caplog.records
        if x.name == "aid.engine.hooks" and x.levelname == "WARNING"
    )
    assert "in TEACHER.MORE_CONFIG_FILES[0] " in message and "further_1.yaml" in message


def test_only_comparable_teachers_are_compared(two_teachers, monkeypatch):
    compared = []
    monkeypatch.setattr(
        "aid.engine.hooks.compare",
        lambda student, teachers, batch: compared.append(teachers) or (torch.zeros(2),) * 2,
    )
    trainer = make_trainer(two_teachers("run", "retinanet", ["TEACHER.COMPARE_BATCHES", 1]))
    trainer.train()
    assert compared == [[trainer.model.teacher]]


def test_all_teachers_are_evaluated_with_eval_first(two_teachers, monkeypatch):
    order, original = [], AIDTrainer.test.__func__

    def test(cls, cfg, model, evaluators=None):
        order.append((type(model).__name__, os.path.basename(cfg.OUTPUT_DIR)))
        return original(cls, cfg, model, evaluators)

    monkeypatch.setattr(AIDTrainer, "test", classmethod(test))
    opts = ["TEACHER.EVAL_FIRST", True, "SOLVER.MAX_ITER", 1]
    make_trainer(two_teachers("run", "retinanet", opts)).train()
    expected = [("GeneralizedRCNN", "teacher"), ("RetinaNet", "teacher_1")]
    assert order == [*expected, ("AIDGeneralizedRCNN", "run")]


def test_run_with_another_number_of_teachers_is_not_resumed(two_teachers, run_config):
    cfg = two_teachers("run")
    with open(os.path.join(cfg.OUTPUT_DIR, "config.yaml"), "w") as f:
        f.write(cfg.dump())
    make_trainer(cfg).checkpointer.save("model_0000000", iteration=0)
    check_output_folder(cfg, resume=True)
    moved = cfg.clone()
    moved.defrost()
    moved.TEACHER.MORE_WEIGHTS = ["elsewhere/further_1.pth"]
    check_output_folder(moved, resume=True)  # like the first teacher's weights
    message = "the length of TEACHER.MORE_CONFIG_FILES is 1 there, 0 here"
    with pytest.raises(AIDError, match=message):
        check_output_folder(run_config("run"), resume=True)
