"""Private names of Detectron2 and torch that the project uses, checked against their versions."""

import inspect
import re
from pathlib import Path

import detectron2.data.build
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetMapper
from detectron2.engine import AMPTrainer, DefaultTrainer, SimpleTrainer
from detectron2.engine.hooks import PreciseBN
from detectron2.evaluation import COCOEvaluator
from detectron2.modeling import RetinaNet
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import CascadeROIHeads
from detectron2.utils.events import TensorboardXWriter
from iopath.common.file_io import PathHandler

import aid
from aid.utils.d2 import train_loader_from_config

# Names of classes and modules: used in aid/utils/d2.py, then by subclasses.
NAMES = [
    (detectron2.data.build, "_train_loader_from_config"),
    (DenseDetector, "_transpose_dense_predictions"),
    (DenseDetector, "_decode_multi_level_predictions"),
    (FCOS, "_match_anchors"),
    (torch.multiprocessing, "_prctl_pr_set_pdeathsig"),
    (RPN, "_subsample_labels"),
    (CascadeROIHeads, "_match_and_label_boxes"),
    (DatasetMapper, "_transform_annotations"),
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
    (PathHandler, "_open"),
]
# Attributes that the classes assign to instances.
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
def test_private_name_exists(owner, name):
    assert hasattr(owner, name)


@pytest.mark.parametrize(("owner", "name"), ATTRIBUTES)
def test_private_attribute_is_assigned(owner, name):
    assert re.search(rf"self\.{name} = ", inspect.getsource(owner))


@pytest.mark.parametrize("detector", [RetinaNet, FCOS])
def test_running_normalizer_is_loss_normalizer(detector):
    """``AIDTrainer.state_dict`` saves it in checkpoints."""
    assert '_ema_update("loss_normalizer"' in inspect.getsource(detector)


def test_train_loader_config_has_the_expected_keys(toy_dataset):
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = (toy_dataset,)
    parts = train_loader_from_config(cfg)
    assert parts.keys() >= {"dataset", "sampler", "mapper", "aspect_ratio_grouping", "num_workers"}


def test_private_names_are_used_in_d2_module_and_subclasses_only():
    package = Path(aid.__file__).parent
    names = "|".join({name for _, name in NAMES + ATTRIBUTES})
    uses = re.compile(rf"\bimport .*\b({names})\b|(?<!\bself)(?<!\bcls)(?<!super\(\))\.({names})\b")
    actual = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if uses.search(path.read_text())
    }
    assert actual == {"utils/d2.py"}
