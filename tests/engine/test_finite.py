"""Errors on non-finite losses, and on images that cannot be trained on."""

import os
from types import SimpleNamespace

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn

from aid.engine import AIDTrainer
from aid.engine.accumulation import AccumulatingTrainer
from aid.engine.finite import check_finite, naming_images
from aid.utils.errors import AIDError

KINDS = ["faster_rcnn", "retinanet", "gfl", "fcos"]
BROKEN = [*((kind, torch.nan) for kind in KINDS), ("retinanet", torch.inf)]


@pytest.fixture
def run(student_model):
    """A function (kind, batch, change, opts) that trains a changed student for one iteration."""

    def iterate(kind, batch, change=lambda model: None, opts=()):
        model, _ = student_model(kind, opts=opts)
        change(model)
        for i, sample in enumerate(batch):
            sample["file_name"] = f"{i}.png"
        before = {k: v.clone() for k, v in model.named_parameters()}
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        trainer = AccumulatingTrainer(model, [batch], optimizer)
        with EventStorage(19):
            trainer.iter = 19
            try:
                trainer.run_step()
            finally:
                changed = [k for k, v in model.named_parameters() if not torch.equal(v, before[k])]
        assert changed

    return iterate


@pytest.mark.parametrize("kind, value", BROKEN)
def test_error_names_a_non_finite_image(kind, value, run, make_batch):
    batch = make_batch((2, 3))
    batch[1]["image"] = batch[1]["image"].float()
    batch[1]["image"][2, 5, 7] = value
    with pytest.raises(AIDError, match="^image 1.png holds NaN or infinity: replace the file"):
        run(kind, batch)


def break_teacher(model, value=torch.nan):
    """Set one feature of the teacher on the second image to ``value``."""

    def damage(module, inputs, output):
        output["p3"][1, 0, 0, 0] = value

    model.teacher.detector.backbone.register_forward_hook(damage)


@pytest.mark.parametrize("kind, value", BROKEN)
def test_error_names_a_teacher_with_non_finite_features(kind, value, run, make_batch):
    with pytest.raises(
        AIDError, match="feature is nan.* images 0.png, 1.png, where .*TEACHER"
    ) as e:
        run(kind, make_batch((2, 3)), lambda model: break_teacher(model, value))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("kinds", [("network",), ("detector", "network"), ("detections",)])
def test_advice_fits_the_kinds_of_teachers(kinds):
    """Teachers without heads, or without features, cannot be evaluated."""
    teachers = [
        SimpleNamespace(name=x, has_heads=x != "network", has_features=x != "detections")
        for x in kinds
    ]
    terms = {"loss_cls": torch.tensor(1.0), "loss_distill_pkd": torch.tensor(torch.nan)}
    batch = [{"image": torch.zeros(3, 2, 2), "file_name": "0.png"}]
    with pytest.raises(AIDError, match="is nan on images 0.png, .* turn SOLVER.AMP") as error:
        check_finite(terms, batch, teachers)
    names = "detector and network" if "detector" in kinds else "network"
    assert (f"finite: run {names} on these images" in str(error.value)) == ("network" in kinds)
    assert "EVAL_FIRST" not in str(error.value)


@pytest.mark.parametrize("kind", KINDS)
def test_error_names_the_images_of_a_non_finite_student(kind, run, make_batch):
    def damage(model):
        nn.init.constant_(model.backbone.fpn_output3.bias, torch.nan)

    with pytest.raises(FloatingPointError, match="on images 0.png, 1.png$"):
        run(kind, make_batch((2, 3)), damage)


@pytest.mark.parametrize("kind", KINDS)
def test_error_names_an_image_too_small_for_batch_norm(kind, run, make_batch):
    (sample,) = make_batch((1,))
    sample["image"] = sample["image"][:, :20, :24]
    with pytest.raises(AIDError, match="images 0.png are too small for batch norm.*FrozenBN"):
        run(kind, [sample])
    run(kind, [sample], opts=["MODEL.RESNETS.NORM", "FrozenBN"])


def test_other_errors_are_unchanged(make_batch):
    with pytest.raises(ValueError, match="^a bug$"), naming_images(make_batch()):
        raise ValueError("a bug")


def train(cfg, broken_rank=0):
    """Error message of a run whose teacher is broken in one process."""
    trainer = AIDTrainer(cfg)
    trainer.resume_or_load(False)
    model = getattr(trainer.model, "module", trainer.model)
    if comm.get_rank() == broken_rank:
        break_teacher(model)
    try:
        trainer.train()
    except (AIDError, RuntimeError) as error:  # the other processes lose the connection
        return str(error)


def test_error_of_a_run_names_files_of_its_dataset(run_config, toy_dataset, caplog):
    message = train(run_config("run", opts=["TEACHER.COMPARE_BATCHES", 0]))
    files = message.split("images ")[1].split(", where")[0].split(", ")
    known = {x["file_name"] for x in DatasetCatalog.get(toy_dataset)}
    assert len(files) == 2 and set(files) < known
    assert "loss_distill_feature is nan" in message and "\n" not in message
    assert not any(record.exc_info for record in caplog.records)


# Mixed precision may skip the first steps: torch then warns of the order of the scheduler.
@pytest.mark.filterwarnings("ignore:Detected call of")
@pytest.mark.parametrize("amp", [False, True])
def test_divergence_error_names_iteration_and_images(amp, run_config, toy_dataset, caplog):
    opts = ["SOLVER.BASE_LR", 1e12, "SOLVER.WARMUP_ITERS", 0, "SOLVER.MAX_ITER", 40]
    opts += ["SOLVER.AMP.ENABLED", amp, "SOLVER.CHECKPOINT_PERIOD", 100]
    message = train(run_config("run", opts=opts), broken_rank=None)
    assert message.startswith("training diverged at iteration ") and "\n" not in message
    assert "lower SOLVER.BASE_LR" in message
    assert os.path.dirname(DatasetCatalog.get(toy_dataset)[0]["file_name"]) in message
    assert ("turn SOLVER.AMP.ENABLED off" in message) == amp
    assert not any(record.exc_info for record in caplog.records)


def test_error_comes_from_the_process_with_the_images(run_config, in_processes):
    opts = ["SOLVER.IMS_PER_BATCH", 4, "TEACHER.COMPARE_BATCHES", 0]
    opts += [
        "DISTILLATION.LOSSES",
        ["AttentionGuidedLoss"],
    ]  # a non-local block would share its batch norm
    cfg = run_config("run", opts=opts)
    other, broken = in_processes(2, train, cfg, 1)
    assert "loss_distill_feature is nan" in broken and " on images /" in broken
    assert "nan" not in other
