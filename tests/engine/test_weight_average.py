"""Average of the weights: known values, checkpoints, evaluation and resuming."""

import os

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import HookBase, hooks
from detectron2.modeling import build_model
from torch import nn

from aid.engine import AIDTrainer
from aid.engine.weight_average import WeightAverage
from aid.utils.errors import AIDError

ON = ["MODEL_EMA.ENABLED", True, "MODEL_EMA.DECAY", 0.5]


class Stop(HookBase):
    """Hook that interrupts a run after the checkpoint of iteration 1."""

    def after_step(self):
        if self.trainer.iter == 1:
            raise KeyboardInterrupt


class Record(HookBase):
    """Hook that records the student's own weights after every iteration, before other hooks."""

    def __init__(self):
        self.own = []

    def after_step(self):
        student = self.trainer.checkpointer.model
        self.own.append({k: v.clone() for k, v in student.state_dict().items()})


def train(cfg, *more, stop=False, resume=False):
    torch.manual_seed(cfg.SEED)
    trainer = AIDTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer._hooks[:0] = more
    for hook in more:
        hook.trainer = trainer
    if stop:
        trainer.register_hooks([Stop()])
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
        return trainer, None
    trainer.train()
    return trainer, torch.load(os.path.join(cfg.OUTPUT_DIR, "model_final.pth"))


def test_known_averages():
    model = nn.BatchNorm1d(1)
    average = WeightAverage(model, 0.25)
    start = average.weights["weight"].clone()
    with torch.no_grad():
        model.weight += 1
    model.num_batches_tracked += 7
    average.update(0)  # d is 1 / 10
    assert average.weights["weight"].item() == pytest.approx(1.9)
    assert average.weights["num_batches_tracked"] == 7
    average.update(1)  # d is 2 / 11
    assert average.weights["weight"].item() == pytest.approx(2 - 0.1 * 2 / 11)
    average.update(1000)  # d is the configured decay
    assert average.weights["weight"].item() == pytest.approx(2 - 0.1 * 2 / 11 / 4)
    assert start == 1 and model.weight.item() == 2


def test_shared_weights_are_averaged_and_exchanged_once():
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    model[1].weight = model[0].weight
    nn.init.constant_(model[0].weight, 1.0)
    average = WeightAverage(model, 0.5)
    nn.init.constant_(model[0].weight, 2.0)
    average.update(100)
    with average.in_model():
        assert model[0].weight.item() == model[1].weight.item() == 1.5
    assert model[0].weight.item() == 2
    assert average.weights["0.weight"].item() == average.weights["1.weight"].item() == 1.5


def test_exchange_is_undone_after_an_error_and_keeps_statistics():
    model = nn.BatchNorm1d(1)
    average = WeightAverage(model, 0.9)
    nn.init.constant_(model.weight, 3.0)
    with pytest.raises(KeyError), average.in_model():
        assert model.weight.item() == 1
        model.running_mean += 5
        raise KeyError
    assert model.weight.item() == 3 and model.running_mean.item() == 0
    assert average.weights["running_mean"].item() == 5 and average.weights["weight"].item() == 1


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_invalid_decay_is_refused(decay):
    with pytest.raises(AIDError, match=r"MODEL_EMA.DECAY is .*: it must be at least 0 and below 1"):
        WeightAverage(nn.Linear(1, 1), decay)


@pytest.mark.core
def test_average_is_evaluated_and_saved_for_plain_detectron2(run_config, monkeypatch):
    evaluated = []

    def test(cls, cfg, model, evaluators=None):
        state = model.state_dict()
        evaluated.append({k: v.clone() for k, v in state.items() if "distill" not in k})
        return {}

    monkeypatch.setattr(AIDTrainer, "test", classmethod(test))
    cfg = run_config("run", opts=[*ON, "TEST.EVAL_PERIOD", 2])
    record = Record()
    trainer, saved = train(cfg, record)
    plain_cfg = cfg.clone()
    plain_cfg.defrost()
    plain_cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    plain = build_model(plain_cfg)
    assert saved["model"].keys() == plain.state_dict().keys() == saved["own_weights"].keys()
    halfway = torch.load(os.path.join(cfg.OUTPUT_DIR, "model_0000001.pth"))
    for content, tested, own in zip(
        (halfway, saved), evaluated, (record.own[1], record.own[3]), strict=True
    ):
        assert all(torch.equal(tested[k], x) for k, x in content["model"].items())
        assert all(torch.equal(own[k], x) for k, x in content["own_weights"].items())
    name = "backbone.fpn_output2.weight"
    expected = torch.load(os.path.join(cfg.OUTPUT_DIR, "model_0000000.pth"))["model"][name]
    for t, d in ((1, 2 / 11), (2, 3 / 12), (3, 4 / 13)):
        expected = d * expected + (1 - d) * record.own[t][name]
    torch.testing.assert_close(saved["model"][name], expected)
    assert not torch.equal(saved["model"][name], saved["own_weights"][name])
    DetectionCheckpointer(plain).load(os.path.join(cfg.OUTPUT_DIR, "model_final.pth"))
    assert torch.equal(plain.state_dict()[name], saved["model"][name])
    final = trainer.checkpointer.model.state_dict()
    assert all(torch.equal(final[k], x) for k, x in saved["own_weights"].items())


@pytest.mark.core
def test_average_does_not_change_the_training(run_config):
    _, expected = train(run_config("without"))
    _, actual = train(run_config("with", opts=ON))
    assert "own_weights" not in expected
    assert all(torch.equal(actual["own_weights"][k], x) for k, x in expected["model"].items())
    assert any(not torch.equal(actual["model"][k], x) for k, x in expected["model"].items())


@pytest.mark.core
def test_resumed_run_has_the_same_average(run_config):
    opts = [*ON, "TEST.EVAL_PERIOD", 2, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0]
    _, expected = train(run_config("whole", opts=opts))
    cfg = run_config("stopped", opts=opts)
    train(cfg, stop=True)
    _, actual = train(cfg, resume=True)
    for part in ("model", "own_weights", "distillation"):
        assert actual[part].keys() == expected[part].keys()
        assert all(torch.equal(actual[part][k], x) for k, x in expected[part].items()), part


def averages(cfg):
    trainer, _ = train(cfg)
    return trainer.average.weights


def test_all_processes_evaluate_the_saved_average(run_config, in_processes):
    opts = ["SOLVER.IMS_PER_BATCH", 4, "MODEL.RESNETS.NORM", "BN"]
    cfg = run_config("run", opts=[*ON, *opts])
    # The last evaluation has given all processes the buffers of the main process.
    evaluated = in_processes(2, averages, cfg)
    content = torch.load(os.path.join(cfg.OUTPUT_DIR, "model_final.pth"))["model"]
    for weights in evaluated:
        assert all(torch.equal(weights[k], x) for k, x in content.items())


def test_training_starts_from_the_average_of_another_run(run_config):
    _, saved = train(run_config("first", opts=ON))
    path = os.path.join(run_config("first").OUTPUT_DIR, "model_final.pth")
    trainer = AIDTrainer(run_config("second", opts=[*ON, "MODEL.WEIGHTS", path]))
    trainer.resume_or_load(resume=False)
    for hook in trainer._hooks:
        if type(hook).__name__ == "AverageWeights":
            trainer.start_iter = 0
            hook.before_train()
    assert all(torch.equal(trainer.average.weights[k], x) for k, x in saved["model"].items())


def test_precise_statistics_are_computed_for_the_average(run_config):
    opts = ["TEST.PRECISE_BN.ENABLED", True, "TEST.PRECISE_BN.NUM_ITER", 2]
    opts += ["MODEL.RESNETS.NORM", "BN", *ON]
    _, precise = train(run_config("run", opts=opts))
    names = [k for k in precise["model"] if k.endswith("running_mean")]
    assert names
    assert any(not torch.equal(precise["model"][k], precise["own_weights"][k]) for k in names)
    # Statistics of one batch, with momentum 0.1, differ clearly from a mean over batches.
    _, without = train(run_config("without", opts=[*opts, "TEST.PRECISE_BN.ENABLED", False]))
    for k, x in without["own_weights"].items():
        assert torch.equal(precise["own_weights"][k], x), k
    assert any(not torch.equal(precise["model"][k], without["model"][k]) for k in names)


def test_best_checkpoint_contains_the_average(run_config):
    cfg = run_config("run", opts=ON)
    torch.manual_seed(cfg.SEED)
    trainer = AIDTrainer(cfg)
    best = hooks.BestCheckpointer(1, trainer.checkpointer, "lr")
    trainer.register_hooks([best])
    trainer.resume_or_load(resume=False)
    trainer.train()
    saved = torch.load(os.path.join(cfg.OUTPUT_DIR, "model_best.pth"))
    last = torch.load(os.path.join(cfg.OUTPUT_DIR, f"model_{saved['iteration']:07d}.pth"))
    assert all(torch.equal(saved["model"][k], x) for k, x in last["model"].items())


@pytest.mark.parametrize("before", [True, False])
def test_resume_with_the_average_switched_is_refused(before, run_config):
    train(run_config("run", opts=ON if before else []), stop=True)
    cfg = run_config("run", opts=[] if before else ON)
    now = "without" if before else "with"
    with pytest.raises(AIDError, match=f"this run is {now} MODEL_EMA.ENABLED.*as it was, or"):
        train(cfg, resume=True)
