"""Runs in which distillation starts late or ends early."""

import pytest
import torch

from aid.engine import AIDTrainer

KEYS = "DISTILLATION.SCHEDULE"
SOLVERS = {
    "SGD": ["SOLVER.WEIGHT_DECAY", 0.5],  # and momentum
    "AdamW": ["SOLVER.WEIGHT_DECAY", 0.5, "SOLVER.OPTIMIZER", "AdamW"],
    "clipped": ["SOLVER.WEIGHT_DECAY", 0.5, "SOLVER.CLIP_GRADIENTS.ENABLED", True],
    "accumulated": ["SOLVER.WEIGHT_DECAY", 0.5, "SOLVER.ACCUMULATION_STEPS", 2],
}


def train(cfg, resume=False):
    """Content of each checkpoint of a run, by iteration."""
    torch.manual_seed(cfg.SEED)
    trainer = AIDTrainer(cfg)
    trainer.resume_or_load(resume)
    trainer.train()
    checkpoints = {}
    for k in range(4):
        name = "model_final" if k == 3 else f"model_{k:07d}"
        checkpoints[k] = torch.load(f"{cfg.OUTPUT_DIR}/{name}.pth", weights_only=False)
    return checkpoints


def equal_states(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], v) for k, v in b.items())


@pytest.mark.parametrize("solver", SOLVERS)
def test_pause_is_plain_training_and_leaves_adapters_unchanged(solver, run_config):
    """Only iteration 2 distills."""
    opts = [*SOLVERS[solver], f"{KEYS}.START_ITER", 2, f"{KEYS}.END_ITER", 3]
    late = run_config("late", opts=opts)
    torch.manual_seed(late.SEED)
    initial = AIDTrainer(late).model.distillation.state_dict()
    plain = late.clone()
    plain.defrost()
    plain.MODEL.META_ARCHITECTURE, plain.OUTPUT_DIR = "GeneralizedRCNN", f"{late.OUTPUT_DIR}_plain"
    checkpoints, expected = train(late), train(plain)
    equal = [equal_states(checkpoints[k]["model"], expected[k]["model"]) for k in range(4)]
    assert equal == [True, True, False, False]
    adapters = [initial, *(checkpoints[k]["distillation"] for k in range(4))]
    unchanged = [equal_states(a, b) for a, b in zip(adapters, adapters[1:], strict=False)]
    assert unchanged == [True, True, False, True]


def test_run_resumed_in_a_pause_continues_bit_for_bit(run_config):
    opts = [f"{KEYS}.START_ITER", 1, f"{KEYS}.END_ITER", 3, f"{KEYS}.DECAY", "cosine"]
    opts += ["SOLVER.OPTIMIZER", "AdamW", "AID.WEIGHTING", "RelativeWeighting"]
    expected = train(run_config("whole", opts=opts))
    for interrupted in (0, 1, 2):
        cfg = run_config(f"at_{interrupted}", opts=opts)
        torch.manual_seed(cfg.SEED)
        trainer = AIDTrainer(cfg)
        trainer.resume_or_load(False)
        trainer.max_iter = interrupted + 1  # the schedules keep the length of the run
        trainer.train()
        resumed = AIDTrainer(cfg)
        resumed.resume_or_load(True)
        resumed.train()
        final = torch.load(f"{cfg.OUTPUT_DIR}/model_final.pth", weights_only=False)
        for key in ("model", "distillation"):
            assert equal_states(final[key], expected[3][key])


def test_late_teacher_is_compared_at_the_start(run_config, caplog):
    cfg = run_config("run", opts=[f"{KEYS}.START_ITER", 3, "VIS_PERIOD", 1])
    torch.manual_seed(cfg.SEED)
    trainer = AIDTrainer(cfg)
    trainer.resume_or_load(False)
    with torch.no_grad():  # it predicts background everywhere
        trainer.model.teacher.detector.roi_heads.box_predictor.cls_score.bias[-1] += 20
    trainer.train()
    assert "The teacher's loss on the first batches is" in caplog.text
