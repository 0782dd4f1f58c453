"""Hooks: comparison of teacher and student, precise statistics, and figures."""

import gc
import logging
import os
from types import SimpleNamespace

import pytest
import torch
from matplotlib.figure import Figure

from aid.engine import AIDTrainer
from aid.engine.hooks import CheckStrength, CompareTeacher, TimeFirstSteps
from aid.modeling.balance import GradientRatio
from aid.modeling.teacher import Teacher
from aid.utils.errors import AIDError

LOGGER = "aid.engine.hooks"


def warnings(caplog):
    """Warnings of the hooks; messages below depend on the level that other tests have set."""
    records = [x for x in caplog.records if x.name == LOGGER and x.levelno >= logging.WARNING]
    return [x.getMessage() for x in records]


def train(cfg, change=None, resume=False):
    """Weights after a run of a student that ``change`` modified before."""
    torch.manual_seed(cfg.SEED)
    trainer = AIDTrainer(cfg)
    trainer.resume_or_load(resume)
    if change:
        change(trainer.model)
    trainer.train()
    return trainer.model.state_dict()


BY_WEIGHTS = ["DISTILLATION.BALANCE", 0.0, "TEACHER.COMPARE_BATCHES", 0, "DATASETS.TEST", ()]


@pytest.mark.parametrize(
    "student, loss", [("faster_rcnn", "NonLocalLoss"), ("retinanet", "ResponseLoss")]
)
def test_measuring_the_strength_does_not_change_the_training(
    student, loss, run_config, monkeypatch
):
    monkeypatch.setattr("aid.engine.hooks.PERIOD", 3)
    opts = [*BY_WEIGHTS, "DISTILLATION.LOSSES", [loss], "SOLVER.ACCUMULATION_STEPS", 2]
    actual = train(run_config("with", student, opts=opts))
    monkeypatch.setattr(CheckStrength, "before_train", lambda hook: None)
    expected = train(run_config("without", student, opts=opts))
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[k], v) for k, v in expected.items())


def test_unusual_strength_is_reported_with_the_weight_that_mends_it(
    run_config, monkeypatch, caplog
):
    monkeypatch.setattr("aid.engine.hooks.PERIOD", 3)
    opts = [*BY_WEIGHTS, "SOLVER.BASE_LR", 0.0, "DISTILLATION.SCHEDULE.START_ITER", 1]
    opts += ["DISTILLATION.SCHEDULE.DECAY", "linear", "DISTILLATION.WEIGHT"]
    weights = []
    for name, weight, word in (("strong", 1e6, "too much"), ("weak", 1e-6, "too little")):
        caplog.clear()
        train(run_config(name, opts=[*opts, weight]))
        (message,) = warnings(caplog)
        assert word in message and "DISTILLATION.BALANCE to 10.0 and" in message
        weights.append(float(message.split("WEIGHT alone to ")[1].split(",")[0]))
    assert weights[0] == pytest.approx(weights[1], rel=0.1)  # both of two digits
    caplog.clear()
    for name, weight in (("a hundredth", weights[0] / 90), ("a hundred times", weights[0] * 90)):
        train(run_config(name, opts=[*opts, weight]))
    train(run_config("strong", opts=[*opts, 1e6]), resume=True)
    assert not warnings(caplog)


@pytest.mark.parametrize("opts", [["DISTILLATION.WEIGHT", 0.0], ["DISTILLATION.BALANCE", 3.0]])
def test_strength_is_not_measured_where_nothing_follows(opts, run_config):
    hooks = AIDTrainer(run_config("run", opts=[*BY_WEIGHTS, *opts]))._hooks
    assert not any(isinstance(hook, CheckStrength) for hook in hooks)


def test_strength_without_gradients_is_ignored(run_config, monkeypatch, caplog):
    monkeypatch.setattr("aid.engine.hooks.PERIOD", 2)
    train(run_config("run", opts=BY_WEIGHTS), lambda model: model.backbone.requires_grad_(False))
    assert not warnings(caplog)


def imitate_nothing(model):
    """Replaces the distillation losses by a constant."""
    model.distillers[0].terms = lambda *args: {"loss_distill_none": torch.ones(())}


@pytest.mark.parametrize("weight, change", [(0.0, None), (6.0, imitate_nothing)])
def test_imitation_without_gradient_is_reported(weight, change, run_config, monkeypatch, caplog):
    monkeypatch.setattr("aid.engine.hooks.PERIOD", 2)
    opts = ["DISTILLATION.LOSSES", ["PKDLoss"], "DISTILLATION.PKD.WEIGHT", weight]
    train(run_config("run", opts=[*BY_WEIGHTS, *opts]), change)
    (message,) = warnings(caplog)
    assert "imitation is 0 times" in message and "check DISTILLATION.LOSSES" in message
    assert "BALANCE" not in message


def test_no_advice_follows_from_gradients_that_are_not_finite(caplog):
    student = SimpleNamespace(distillation_weight=1.0)
    for squares in ([torch.inf, 1.0], [1.0, torch.inf], [torch.inf, 0.0], [torch.nan, 0.0]):
        ratio = GradientRatio()
        ratio.squares += torch.tensor(squares)
        ratio._iteration = 0
        CheckStrength(student)._check(torch.stack([ratio.take()]))
    assert not warnings(caplog)


def predict_background(detector):
    with torch.no_grad():
        detector.roi_heads.box_predictor.cls_score.bias[-1] += 20  # everything is background


@pytest.mark.parametrize("student, steps", [("retinanet", 1), ("faster_rcnn", 2)])
def test_comparison_does_not_change_the_training(student, steps, run_config):
    opts = ["SOLVER.ACCUMULATION_STEPS", steps, "TEACHER.COMPARE_BATCHES"]
    expected = train(run_config("without", student, opts=[*opts, 0]))
    actual = train(run_config("with", student, opts=[*opts, 3]))
    assert all(torch.equal(actual[k], v) for k, v in expected.items())


def test_teacher_worse_than_the_student_is_reported(run_config, caplog):
    train(run_config("run"), lambda model: predict_background(model.teacher.detector))
    (message,) = warnings(caplog)
    teacher_loss, student_loss = (
        float(message.split(word)[1].split(",")[0].split(":")[0]) for word in (" is ", "yet, ")
    )
    assert teacher_loss > student_loss + 10 and student_loss > 0
    for word in ("TEACHER.WEIGHTS", "classes", "INPUT.FORMAT", "PIXEL_MEAN", "EVAL_FIRST"):
        assert word in message
    assert "\n" not in message


def test_non_finite_teacher_is_reported_as_worse(caplog):
    with pytest.raises(AIDError, match="^TEACHER.COMPARE_BATCHES is -1: it must be 0 or more"):
        CompareTeacher(None, -1)
    hook = CompareTeacher(None, 1)
    with caplog.at_level(logging.WARNING):
        hook._check("TEACHER.CONFIG_FILE", torch.tensor([[1.0, 2.0, 9.0], [2.0, 3.0, torch.inf]]))
        hook._check("TEACHER.CONFIG_FILE", torch.zeros(2, 0))
        assert not caplog.records
        hook._check(
            "TEACHER.CONFIG_FILE", torch.tensor([[1.0, torch.nan, 9.0], [2.0, 3.0, torch.inf]])
        )
    assert "batches is nan, that of the student" in caplog.text and "yet, 2.5:" in caplog.text


def test_better_teacher_is_not_reported(run_config, caplog):
    train(run_config("run"), predict_background)
    assert not warnings(caplog)


@pytest.mark.parametrize("opts, batches", [([], 4), (["TEACHER.COMPARE_BATCHES", 2], 2)])
def test_only_the_first_batches_of_a_run_are_compared(opts, batches, run_config, monkeypatch):
    compared = []

    def fake_compare(student, teachers, batch):
        compared.append(len(batch))
        return torch.zeros(2), torch.zeros(2)

    monkeypatch.setattr("aid.engine.hooks.compare", fake_compare)
    opts = [*opts, "SOLVER.MAX_ITER", 6]
    train(run_config("run", opts=opts))
    assert compared == [2] * batches
    train(run_config("run", opts=[*opts, "SOLVER.MAX_ITER", 8]), resume=True)
    assert compared == [2] * batches


def test_run_shorter_than_the_comparison_is_evaluated(run_config):
    cfg = run_config("run", opts=["SOLVER.MAX_ITER", 1])
    train(cfg)
    with open(os.path.join(cfg.OUTPUT_DIR, "metrics.json")) as f:
        assert "bbox/AP" in f.read()


def test_teacher_of_another_family_is_not_compared(run_config, monkeypatch):
    monkeypatch.setattr("aid.engine.hooks.compare", None)
    assert train(run_config("run", "retinanet", "faster_rcnn", ["SOLVER.MAX_ITER", 1]))


@pytest.mark.parametrize("student", ["faster_rcnn", "retinanet"])
def test_precise_statistics_do_not_change_the_training(student, run_config, monkeypatch):
    """Only running statistics differ, and the teacher runs once per iteration."""
    views = []
    view = Teacher.view
    monkeypatch.setattr(Teacher, "view", lambda *args: views.append(1) or view(*args))
    opts = ["TEST.EVAL_PERIOD", 2, "DATASETS.TEST", (), "AID.WEIGHTING", "RelativeWeighting"]
    opts += ["DISTILLATION.BALANCE", 2.0, "TEST.PRECISE_BN.NUM_ITER", 3]
    runs, numbers = [], []
    for name, on in (("without", False), ("with", True)):
        views.clear()
        cfg = run_config(name, student, opts=[*opts, "TEST.PRECISE_BN.ENABLED", on])
        train(cfg)
        numbers.append(len(views))
        runs.append(torch.load(f"{cfg.OUTPUT_DIR}/model_final.pth"))
    expected, actual = runs
    assert numbers[0] == numbers[1]
    statistics = [k for k in expected["model"] if "running_" in k and "bottom_up" in k]
    assert statistics
    assert not all(torch.equal(actual["model"][k], expected["model"][k]) for k in statistics)
    for key in ("model", "distillation"):
        for k, v in expected[key].items():
            if key == "distillation" or not ("running_" in k or "num_batches" in k):
                assert torch.equal(actual[key][k], v), k
    normalizers = [x["trainer"]["hooks"].get("SaveNormalizers") for x in runs]
    assert normalizers[0] == normalizers[1] and (normalizers[0] is None) == (
        student == "faster_rcnn"
    )


def test_precise_statistics_do_not_depend_on_resuming(run_config):
    opts = ["TEST.PRECISE_BN.ENABLED", True, "TEST.PRECISE_BN.NUM_ITER", 3]
    opts += ["TEST.EVAL_PERIOD", 2, "DATASETS.TEST", ()]
    train(run_config("whole", opts=opts))
    cut = run_config("cut", opts=[*opts, "SOLVER.MAX_ITER", 2])
    train(cut)
    train(run_config("cut", opts=opts), resume=True)
    expected, actual = (
        torch.load(cut.OUTPUT_DIR.replace("cut", name) + "/model_final.pth")["model"]
        for name in ("whole", "cut")
    )
    assert all(torch.equal(actual[k], v) for k, v in expected.items())


def test_figures_are_released(run_config):
    def figures():
        return sum(issubclass(type(x), Figure) for x in gc.get_objects())

    gc.collect()
    before = figures()
    gc.disable()
    try:
        assert train(run_config("run", opts=["VIS_PERIOD", 1, "SOLVER.MAX_ITER", 3]))
        assert figures() == before
    finally:
        gc.enable()


@pytest.mark.parametrize("start", [0, 7])
def test_first_iterations_of_a_run_are_reported_once(start, monkeypatch, caplog):
    clock = iter([10.0, 12.5, 20.0, 20.5, 30.0])
    monkeypatch.setattr("aid.engine.hooks.time.perf_counter", lambda: next(clock))
    hook = TimeFirstSteps()
    with caplog.at_level(logging.INFO, LOGGER):
        for i in range(start, start + 3):
            hook.trainer = SimpleNamespace(iter=i, start_iter=start, max_iter=start + 22)
            hook.before_step()
            hook.after_step()
    assert caplog.messages == [
        "The first iteration took 2.5 s, start-up included",
        "The second iteration took 0.5 s: 0:00:10 left at this speed",
    ]


def test_first_hook_times_the_first_iteration(run_config):
    assert isinstance(AIDTrainer(run_config("run"))._hooks[0], TimeFirstSteps)
