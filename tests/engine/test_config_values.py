"""Invalid values of Detectron2's keys: one-line errors at the start of a run."""

import re
from pathlib import Path

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY

from aid.config import load_config
from aid.engine import AIDTrainer
from aid.inference import load_detector
from aid.modeling.build import build_detector
from aid.utils.errors import AIDError
from aid_tools.benchmark.nets import random_detector
from aid_tools.report.runs import Run, load_run
from aid_tools.study.gradients import _of_run as compare_run
from aid_tools.visualization.load import build_student


@pytest.mark.parametrize(
    "key, value",
    [
        ("MODEL.BACKBONE.NAME", "build_no_backbone"),
        ("MODEL.META_ARCHITECTURE", "NoRCNN"),
        ("MODEL.RESNETS.NORM", "BatchNorm"),
        ("MODEL.FPN.NORM", "XY"),
        ("MODEL.RESNETS.DEPTH", 77),
        ("MODEL.ROI_HEADS.NAME", "NoHeads"),
        ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "NoPool"),
    ],
)
def test_error_names_the_key_of_an_unknown_name(key, value, tiny_config):
    with pytest.raises(AIDError, match="the config cannot be used: ") as error:
        build_detector(load_config(tiny_config("faster_rcnn"), [key, str(value)]))
    assert f"check {key}; the log.txt" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["MODEL.FPN.OUT_CHANNELS", "OUTPUT_DIR", "SOLVER.BASE_LR"])
def test_none_is_refused_where_a_value_is_required(key, tiny_config):
    path = tiny_config("faster_rcnn")
    with pytest.raises(AIDError, match=f"^{key} is None: give it a value, or leave it out"):
        load_config(path, [key, "None"])
    assert load_config(path, ["MODEL.FPN.NORM", "None"]).MODEL.FPN.NORM is None


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("SOLVER.IMS_PER_BATCH", -2, "SOLVER.IMS_PER_BATCH -2 is not divisible"),
        ("SOLVER.CHECKPOINT_PERIOD", 0, "SOLVER.CHECKPOINT_PERIOD is 0: it must be 1 or more"),
        ("SOLVER.REFERENCE_WORLD_SIZE", 3, "config cannot be used: AssertionError"),
        ("DATALOADER.NUM_WORKERS", -1, "config cannot be used: ValueError: num_workers option"),
        ("MODEL.PIXEL_STD", [1.0], "config cannot be used: AssertionError"),
    ],
)
def test_invalid_numbers_and_lengths_are_refused(key, value, message, run_config):
    with pytest.raises(AIDError, match=message) as error:
        trainer = AIDTrainer(run_config("run", opts=[key, value]))
        trainer.resume_or_load(resume=False)
        trainer.train()
    assert "\n" not in str(error.value)


def test_error_in_a_custom_detector_keeps_its_traceback(tiny_config):
    @META_ARCH_REGISTRY.register()
    class Broken(torch.nn.Module):
        def __init__(self, cfg):
            raise KeyError("a bug of its own")

    cfg = load_config(tiny_config("faster_rcnn", ["MODEL.META_ARCHITECTURE", "Broken"]))
    with pytest.raises(KeyError, match="a bug of its own"):
        build_detector(cfg)


def test_error_of_every_tool_names_the_key(student_config, repository):
    cfg = student_config("faster_rcnn", opts=["MODEL.RESNETS.NORM", "BatchNorm"])
    builders = {
        "report": Run("run", cfg, []).build,
        "visualize": lambda: build_student(cfg),
        "predict and export": lambda: load_detector(cfg),
        "benchmark": lambda: random_detector(cfg, []),
        "studies": lambda: list(compare_run(cfg, None, 1)),
    }
    for tool, build in builders.items():
        with pytest.raises(AIDError, match="config cannot be used: .*: check MODEL.RESNETS.NORM;"):
            pytest.fail(f"{tool}: {build()}")
    # Nothing else builds a detector unchecked.
    paths = [*Path(repository, "tools").glob("*.py"), Path(repository, "train_net.py")]
    paths += Path(repository, "projects/AID/aid_tools").rglob("*.py")
    unchecked = [x.name for x in paths if re.search(r"import .*\bbuild_model\b", x.read_text())]
    assert unchecked == []


def test_report_error_names_an_unregistered_architecture(tiny_config, tmp_path):
    for name in ("metrics.json", "model_final.pth"):
        (tmp_path / name).touch()
    tiny_config("faster_rcnn", ["MODEL.META_ARCHITECTURE", "OwnRCNN"], name="config")
    with pytest.raises(AIDError, match="META_ARCHITECTURE OwnRCNN is not registered: add --regi"):
        load_run(str(tmp_path))


@pytest.mark.parametrize(
    "key, value", [("INPUT.MIN_SIZE_TEST", -5), ("TEST.DETECTIONS_PER_IMAGE", "")]
)
def test_values_refused_by_the_evaluation_are_one_line_errors(key, value, run_config):
    """The evaluation is the last part of a run."""
    cfg = run_config("run", opts=["SOLVER.MAX_ITER", 3])
    cfg.defrost()
    node, name = cfg, key.split(".")
    for part in name[:-1]:
        node = node[part]
    node[name[-1]] = value
    trainer = AIDTrainer(cfg)
    with pytest.raises(AIDError, match="the config cannot be used: ") as error:
        trainer.train()
    assert "\n" not in str(error.value) and trainer.iter == 3
