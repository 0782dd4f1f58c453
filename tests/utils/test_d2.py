"""Private names of Detectron2 that the project uses: an update without them fails here first."""

import inspect
import re
from pathlib import Path

import detectron2.data.build
import pytest
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import AMPTrainer, DefaultTrainer, SimpleTrainer
from detectron2.engine.hooks import PreciseBN
from detectron2.evaluation import COCOEvaluator
from detectron2.modeling import RetinaNet
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.utils.events import TensorboardXWriter
from iopath.common.file_io import PathHandler

import aid
from aid.utils.d2 import train_loader_from_config

# Names of classes and modules. The uses in aid/utils/d2.py, then those by subclasses.
NAMES = [
    (detectron2.data.build, "_train_loader_from_config"),
    (DenseDetector, "_transpose_dense_predictions"),
    (DenseDetector, "_decode_multi_level_predictions"),
    (FCOS, "_match_anchors"),
    (SimpleTrainer, "_data_loader_iter"),
    (SimpleTrainer, "_write_metrics"),
    (AMPTrainer, "_write_metrics"),
    (TensorboardXWriter, "_writer"),
    (DetectionCheckpointer, "_load_file"),
    (DetectionCheckpointer, "_load_model"),
    (DetectionCheckpointer, "_log_incompatible_keys"),
    (COCOEvaluator, "_derive_coco_results"),
    (CfgNode, "_decode_cfg_value"),
    (PathHandler, "_get_supported_prefixes"),
    (PathHandler, "_get_local_path"),
    (PathHandler, "_isfile"),
    (PathHandler, "_exists"),
    (PathHandler, "_open"),
]
# Attributes that the classes give to their instances.
ATTRIBUTES = [
    (DetectionCheckpointer, "_parsed_url_during_load"),
    (COCOEvaluator, "_coco_api"),
    (COCOEvaluator, "_tasks"),
    (DefaultTrainer, "_trainer"),
    (TensorboardXWriter, "_writer_args"),
    (PreciseBN, "_data_iter"),
    (PreciseBN, "_disabled"),
    (PreciseBN, "_model"),
]


@pytest.mark.parametrize(("owner", "name"), NAMES)
def test_a_private_name_exists(owner, name):
    assert hasattr(owner, name)


@pytest.mark.parametrize(("owner", "name"), ATTRIBUTES)
def test_a_private_attribute_is_assigned(owner, name):
    assert re.search(rf"self\.{name} = ", inspect.getsource(owner))


@pytest.mark.parametrize("detector", [RetinaNet, FCOS])
def test_the_running_normalizer_is_an_attribute_of_this_name(detector):
    """Checkpoints hold it, see ``AIDTrainer.state_dict``."""
    assert '_ema_update("loss_normalizer"' in inspect.getsource(detector)


def test_the_parts_of_a_loader_have_these_names(toy_dataset):
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = (toy_dataset,)
    parts = train_loader_from_config(cfg)
    assert parts.keys() >= {"dataset", "sampler", "mapper", "aspect_ratio_grouping", "num_workers"}


def test_private_names_are_used_in_one_place_outside_of_subclasses():
    package = Path(aid.__file__).parent
    names = "|".join({name for _, name in NAMES + ATTRIBUTES})
    uses = re.compile(rf"\bimport .*\b({names})\b|(?<!\bself)(?<!\bcls)(?<!super\(\))\.({names})\b")
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if uses.search(path.read_text())
    }
    assert found == {"utils/d2.py"}
