"""End-to-end training of tiny networks: interruption, evaluation, optimizers."""

import json
import logging
import os

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import HookBase
from detectron2.evaluation import COCOEvaluator

from aid.engine import AIDTrainer
from aid.utils.errors import AIDError


class StopAt(HookBase):
    """Hook that interrupts a run after the checkpoint of an iteration."""

    def __init__(self, iteration):
        self.iteration = iteration

    def after_step(self):
        if self.trainer.iter == self.iteration:
            raise KeyboardInterrupt


def train(cfg, stop_at=None, resume=False):
    torch.manual_seed(cfg.SEED)
    trainer = AIDTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    if stop_at is not None:
        trainer.register_hooks([StopAt(stop_at)])
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
    else:
        trainer.train()
    return torch.load(os.path.join(cfg.OUTPUT_DIR, "model_final.pth")) if stop_at is None else None


# Only the detector's buffers depend on the family, not the optimizer's state.
@pytest.mark.parametrize(
    "student, teacher, optimizer, stop_at",
    [
        ("faster_rcnn", "retinanet", "SGD", 2),
        pytest.param("faster_rcnn", "retinanet", "AdamW", 0, marks=pytest.mark.core),
        pytest.param("retinanet", None, "AdamW", 2, marks=pytest.mark.core),
        ("gfl", None, "AdamW", 1),
        ("fcos", None, "AdamW", 2),
    ],
)
def test_interrupted_run_ends_with_the_same_weights(
    student, teacher, optimizer, stop_at, run_config
):
    # A rule with a running mean and one without, and a loss with random masks.
    rule = {"SGD": "ExponentialWeighting", "AdamW": "RelativeWeighting"}[optimizer]
    opts = ["SOLVER.OPTIMIZER", optimizer, "AID.WEIGHTING", rule]
    if optimizer == "AdamW":
        opts += ["SOLVER.ACCUMULATION_STEPS", 2]
        opts += ["DISTILLATION.BALANCE", 2.0, "TEACHER.INHERIT", teacher is None]
        opts += ["DISTILLATION.LOSSES", ["NonLocalLoss", "MGDLoss"]]
    expected = train(run_config("whole", student, teacher, opts))
    cfg = run_config("stopped", student, teacher, opts)
    train(cfg, stop_at=stop_at)
    torch.rand(99)  # another random state
    actual = train(cfg, resume=True)
    for section in ("model", "distillation"):
        assert actual[section].keys() == expected[section].keys()
        assert all(torch.equal(actual[section][k], v) for k, v in expected[section].items())
    assert actual["iteration"] == expected["iteration"] == 3


def test_plain_architecture_with_a_teacher_is_warned_about(run_config, caplog):
    AIDTrainer.build_model(run_config("plain", opts=["MODEL.META_ARCHITECTURE", "GeneralizedRCNN"]))
    assert "to distill, choose AIDGeneralizedRCNN" in caplog.text


BFLOAT16 = ["SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", "bfloat16"]


@pytest.mark.core
def test_bfloat16_run_resumes_exactly_with_float32_weights(run_config):
    opts = [*BFLOAT16, "DISTILLATION.BALANCE", 2.0]
    expected = train(run_config("whole", opts=opts))
    cfg = run_config("stopped", opts=opts)
    train(cfg, stop_at=1)
    actual = train(cfg, resume=True)
    single = train(run_config("single", opts=opts[4:]))
    for k, x in expected["model"].items():
        assert torch.equal(actual["model"][k], x) and x.isfinite().all()
        assert x.dtype == single["model"][k].dtype
    assert any(not torch.equal(single["model"][k], x) for k, x in expected["model"].items())


def test_unknown_precision_is_refused(run_config):
    opts = ["SOLVER.AMP.DTYPE", "float32"]  # also while AMP is off
    with pytest.raises(AIDError, match="SOLVER.AMP.DTYPE is 'float32': choose one of float16, bf"):
        AIDTrainer(run_config("run", opts=opts))


def test_resumed_finished_run_is_reported_and_evaluated(run_config, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("detectron2"), "propagate", True)
    cfg = run_config("finished", opts=["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0])
    before = train(cfg)
    metrics = os.path.join(cfg.OUTPUT_DIR, "metrics.json")
    os.remove(metrics)
    caplog.clear()
    after = train(cfg, resume=True)
    assert "lr: " not in caplog.text
    message = "holds a run of 4 iterations, SOLVER.MAX_ITER is 4: nothing is left to train"
    assert message in caplog.text
    assert all(torch.equal(before["model"][k], v) for k, v in after["model"].items())
    with open(metrics) as f:
        (line,) = map(json.loads, f)
    assert line["iteration"] == 4 and "bbox/AP50" in line


def test_changed_conditions_are_reported_at_resume(run_config, toy_dataset, caplog):
    train(run_config("run"), stop_at=0)
    train(run_config("run"), stop_at=1, resume=True)
    assert "--resume: the " not in caplog.text
    records = DatasetCatalog.get(toy_dataset)[:5]
    DatasetCatalog.remove(toy_dataset)
    DatasetCatalog.register(toy_dataset, lambda: records)
    path = run_config("run").OUTPUT_DIR + "/model_0000001.pth"
    content = torch.load(path)
    content["trainer"]["conditions"]["number of processes"] = 4
    torch.save(content, path)
    train(run_config("run", opts=["SEED", 5]), stop_at=2, resume=True)
    for message in ("SEED was 3", "processes was 4", "training images was 7"):
        assert f"{message} when the run stopped, and is " in caplog.text
    assert "and is 5 now: from here on" in caplog.text


def test_changed_solver_keys_apply_at_resume(run_config):
    """Otherwise a diverged run could not go on with a lower learning rate."""
    train(run_config("run"), stop_at=2)
    opts = ["SOLVER.BASE_LR", 0.001, "SOLVER.WEIGHT_DECAY", 0.02, "SOLVER.STEPS", (2,)]
    trainer = AIDTrainer(run_config("run", opts=opts))
    trainer.resume_or_load(resume=True)
    group = trainer.optimizer.param_groups[0]
    assert (trainer.start_iter, group["weight_decay"]) == (3, 0.02)
    assert group["lr"] == pytest.approx(1e-4)
    assert trainer.scheduler.base_lrs[0] == 0.001


@pytest.mark.core
def test_run_writes_metrics_and_detections(run_config):
    opts = ["SOLVER.MAX_ITER", 20, "SOLVER.CHECKPOINT_PERIOD", 100]
    # Below 0, because a score may round to 0.
    cfg = run_config("run", opts=[*opts, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", -1.0])
    train(cfg)
    with open(os.path.join(cfg.OUTPUT_DIR, "metrics.json")) as f:
        log = [json.loads(line) for line in f]
    assert any("loss_distill_feature" in line and "aid/weight_mean" in line for line in log)
    assert "bbox/AP" in log[-1] and "bbox/AP-Cyclist" in log[-1]
    with open(os.path.join(cfg.OUTPUT_DIR, "inference", "coco_instances_results.json")) as f:
        assert json.load(f)


def test_evaluation_leaves_the_metadata_unchanged(run_config, toy_dataset, tmp_path):
    for output in ("first", "second"):
        AIDTrainer.build_evaluator(run_config(output), toy_dataset)
        assert not hasattr(MetadataCatalog.get(toy_dataset), "json_file")
        assert list((tmp_path / output / "inference").glob("*.json"))


def test_default_metric_is_coco(run_config, toy_dataset):
    del MetadataCatalog.get(toy_dataset).evaluator_type
    evaluator = AIDTrainer.build_evaluator(run_config("run"), toy_dataset)
    assert isinstance(evaluator, COCOEvaluator)


def test_sigmas_of_keypoints_are_passed_to_the_metric(run_config, toy_dataset):
    cfg = run_config("run", opts=["TEST.KEYPOINT_OKS_SIGMAS", [0.05, 0.1]])
    assert AIDTrainer.build_evaluator(cfg, toy_dataset)._kpt_oks_sigmas == [0.05, 0.1]


@pytest.mark.parametrize("size, sizes", [(48, [64]), (32, [64, 32])])
def test_teacher_of_another_size_is_evaluated_at_both_sizes(size, sizes, run_config, caplog):
    """The second evaluation, at the student's size, does not change the teacher's config."""
    tested = []

    class Watched(AIDTrainer):
        @classmethod
        def test(cls, cfg, model, evaluators=None):
            loader = cls.build_test_loader(cfg, *cfg.DATASETS.TEST)
            (side,) = {min(x["image"].shape[1:]) for (x,) in loader}
            tested.append((side, cfg.OUTPUT_DIR))
            os.makedirs(cfg.OUTPUT_DIR)
            return {"bbox": {"AP": 50.0 + len(tested)}}

    cfg = run_config("run", opts=["TEACHER.EVAL_FIRST", True, "INPUT.MIN_SIZE_TRAIN", (size,)])
    trainer = Watched(cfg)
    assert trainer.test_teachers() == [{"bbox": {"AP": 51.0}}]
    folders = [f"{cfg.OUTPUT_DIR}/teacher", f"{cfg.OUTPUT_DIR}/teacher/at_student_size"]
    assert tested == list(zip(sizes, folders, strict=False))
    assert trainer.model.teacher.cfg.INPUT.MIN_SIZE_TEST == 64
    for number, (_, folder) in enumerate(tested, 51):
        with open(os.path.join(folder, "metrics.json")) as f:
            assert json.load(f)["bbox/AP"] == number
    text = "has bbox/AP 51 at its own size, INPUT.MIN_SIZE_TEST 64, and 52 at the student's, 32, at"
    assert (text in caplog.text) == (len(sizes) == 2)


def test_non_finite_final_weights_are_an_error(run_config):
    """The last loss is finite, but its step makes the weights infinite."""
    opts = ["SOLVER.BASE_LR", 3e38, "SOLVER.WARMUP_ITERS", 0, "SOLVER.MAX_ITER", 1]
    cfg = run_config("run", opts=opts)
    with pytest.raises(AIDError, match="training diverged: .* is not there yet") as error:
        train(cfg)
    assert "\n" not in str(error.value)
    assert not [name for name in os.listdir(cfg.OUTPUT_DIR) if name.endswith(".pth")]
    assert "inference" not in os.listdir(cfg.OUTPUT_DIR)  # no evaluation


def test_adamw_has_parameter_groups_and_clipping_of_detectron2(run_config):
    opts = ["SOLVER.OPTIMIZER", "AdamW", "SOLVER.CLIP_GRADIENTS.ENABLED", True]
    opts += ["SOLVER.WEIGHT_DECAY_NORM", 0.0, "SOLVER.WEIGHT_DECAY", 0.05]
    cfg = run_config("run", opts=opts)
    optimizer = AIDTrainer.build_optimizer(cfg, AIDTrainer.build_model(cfg))
    assert isinstance(optimizer, torch.optim.AdamW)
    assert type(optimizer).__name__ == "AdamWWithGradientClip"
    assert {g["weight_decay"] for g in optimizer.param_groups} == {0.0, 0.05}


def test_unknown_optimizer_is_refused(run_config):
    cfg = run_config("run", opts=["SOLVER.OPTIMIZER", "Lion"])
    with pytest.raises(AIDError, match="SOLVER.OPTIMIZER: 'Lion' is not one of SGD, AdamW"):
        AIDTrainer.build_optimizer(cfg, torch.nn.Linear(1, 1))
