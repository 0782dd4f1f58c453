"""Invalid values of Detectron2's keys: one-line errors at the start of a run."""

import random

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY

from aid.config import load_config
from aid.config.values import _leaves, changed_keys
from aid.engine import AIDTrainer
from aid.modeling.build import build_detector
from aid.utils.errors import AIDError


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


def random_value(value: object) -> object:
    """A value of the same type that is rarely valid."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return random.choice([-1, 0, 7])
    if isinstance(value, float):
        return random.choice([-1.0, 0.0, 1e9])
    if isinstance(value, str):
        return random.choice(["", "XY"])
    return random.choice([type(value)(), value * 2, value[:1]])


# Keys that the random runs keep.
KEPT = ("OUTPUT_DIR", "MODEL.DEVICE", "MODEL.WEIGHTS", "DATASETS.", "DATALOADER.NUM_WORKERS")
KEPT += ("SOLVER.MAX_ITER", "SOLVER.IMS_PER_BATCH", "SEED", "TEST.", "INPUT.", "VIS_PERIOD")


@pytest.mark.parametrize("seed", range(12))
def test_random_values_run_or_raise_a_one_line_error(seed, run_config):
    random.seed(seed)
    kind = ["faster_rcnn", "retinanet", "fcos"][seed % 3]
    leaves = {
        key: value
        for key, value in _leaves(run_config("run", kind))
        if key.startswith(("MODEL.", "SOLVER.")) and not key.startswith(KEPT)
    }
    set_keys = changed_keys(run_config("run", kind)).keys() & leaves.keys()
    key = random.choice(sorted(set_keys if seed % 2 else leaves))
    try:
        opts = [key, random_value(leaves[key]), "SOLVER.MAX_ITER", 1, "DATASETS.TEST", ()]
        trainer = AIDTrainer(run_config("random", kind, opts=opts))
        trainer.resume_or_load(resume=False)
        trainer.train()
    except AIDError as error:
        assert "\n" not in str(error)
