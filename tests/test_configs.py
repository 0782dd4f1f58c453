"""Content of the config files in configs/."""

import functools
import glob
import os
import re

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from torch import nn

from aid.config import load_config
from aid.modeling.meta_arch import DistillationMixin
from aid.modeling.teacher import Teacher, load_teacher_config, map_classes
from aid.modeling.teacher_check import check_teacher, num_classes
from aid.modeling.teacher_keys import DETECTOR, teacher_kinds

ROOT = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "configs")
FILES = sorted(os.path.relpath(f, ROOT) for f in glob.glob(f"{ROOT}/**/*.yaml", recursive=True))
DETECTORS = [f for f in FILES if not f.startswith("backbones") and "Base" not in f]
FRAGMENTS = [f for f in FILES if f not in DETECTORS]
STUDENTS = [f for f in DETECTORS if "_from_" in f]
# Backbone in a file's name: the model of torchvision.
LIGHT = {
    "MobileNetV3L": "mobilenet_v3_large",
    "EfficientNetB0": "efficientnet_b0",
    "RegNetY400MF": "regnet_y_400mf",
}
# Folder of a student's config: folder of its baseline.
BASELINES = {
    "AID": "KITTI",
    "AID/Paper": "KITTI",
    "AID/COCO-Traffic": "COCO-Traffic",
    "Quickstart": "Quickstart",
}


def test_every_config_is_consistent(subtests):
    """Every file loads; a detector's agrees with its name, a student's with its teacher's."""
    for file in FILES:
        with subtests.test(file):
            cfg = load(file)
            if file in FRAGMENTS:
                assert cfg.VERSION == 2
                continue
            model = check_detector(file, cfg)
            if not file.startswith("Quickstart"):
                check_schedule(file, cfg.SOLVER)
            if file in STUDENTS:
                assert set(teacher_kinds(cfg)) == {DETECTOR}  # which read all keys that are set
                check_baseline(file, cfg)
                if "_from_coco_" in file:
                    check_teacher_of_the_zoo(file, cfg, model)
                else:
                    check_teachers(file, cfg)


def test_baselines_of_plain_detectron2_load_there(subtests):
    """Without the keys of this project, as docs/getting_started.md says."""
    plain = [f for f in DETECTORS if re.match(r"(KITTI|COCO-Traffic)/(\w+rcnn|retinanet)_R\d", f)]
    assert len(plain) == 15
    for file in plain:
        with subtests.test(file):
            cfg = get_cfg()
            cfg.merge_from_file(os.path.join(ROOT, file))
            assert cfg.SOLVER.MAX_ITER == load(file).SOLVER.MAX_ITER


@functools.cache
def load(file: str) -> CfgNode:
    return load_config(os.path.join(ROOT, file))


def build_without_weights(cfg: CfgNode) -> nn.Module:
    built = cfg.clone()
    built.MODEL.DEVICE = "meta"  # modules without weights
    # RegNets compute their widths with tensors.
    with torch.device("cpu" if "regnet" in built.MODEL.TORCHVISION.NAME else "meta"):
        return build_model(built)


def check_detector(file: str, cfg: CfgNode) -> nn.Module:
    model = build_without_weights(cfg)
    check_backbone(file, cfg)
    assert num_classes(model) == (13 if "COCO-Traffic" in file else 3)
    assert isinstance(model, DistillationMixin) == ("_from_" in file)
    assert cfg.MODEL.MASK_ON == ("mask_rcnn" in file)
    assert all(name in DatasetCatalog.list() for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
    folder, name = os.path.split(file)
    assert cfg.OUTPUT_DIR == f"output/{folder}/{name[:-5]}".replace("Quickstart", "quickstart")
    return model


def check_backbone(file: str, cfg: CfgNode) -> None:
    """Check that the backbone is the one in the file's name."""
    name = re.search(r"_([A-Z]\w*?)_", os.path.basename(file))[1]
    if name not in LIGHT:
        assert cfg.MODEL.RESNETS.DEPTH == int(name.removeprefix("R"))
        return
    assert cfg.MODEL.BACKBONE.NAME == "build_torchvision_fpn_backbone"
    assert cfg.MODEL.TORCHVISION.NAME == LIGHT[name]
    is_quickstart = file.startswith("Quickstart")
    assert cfg.MODEL.WEIGHTS == ("" if is_quickstart else f"torchvision://{LIGHT[name]}")
    assert cfg.MODEL.TORCHVISION.NORM == ("BN" if is_quickstart else "FrozenBN")
    assert cfg.INPUT.FORMAT == "RGB" and max(cfg.MODEL.PIXEL_STD) < 60


def check_schedule(file: str, solver: CfgNode) -> None:
    """Check the schedule of the paper and of Detectron2."""
    epochs = 24 if file.endswith("R101_FPN.yaml") else 12
    epoch = solver.CHECKPOINT_PERIOD
    assert solver.MAX_ITER == epochs * epoch
    assert solver.STEPS == (epochs * 2 // 3 * epoch, epochs * 11 // 12 * epoch)
    rate = 0.02 if "rcnn" in file else 0.01
    assert solver.BASE_LR / solver.IMS_PER_BATCH == pytest.approx(rate / 16)


def check_teachers(file: str, cfg: CfgNode) -> None:
    """Check that TEACHER.WEIGHTS are where the teachers' configs write them."""
    files = [cfg.TEACHER.CONFIG_FILE, *cfg.TEACHER.MORE_CONFIG_FILES]
    assert len(files) == (2 if file.endswith("from_two.yaml") else 1)
    for path, weights in zip(files, [cfg.TEACHER.WEIGHTS, *cfg.TEACHER.MORE_WEIGHTS], strict=True):
        teacher = load(os.path.relpath(path, ROOT))
        assert weights == f"{teacher.OUTPUT_DIR}/model_final.pth"
        assert cfg.DATASETS.TRAIN == teacher.DATASETS.TRAIN
    granularity = file.rsplit("_", 1)[1][:-5]
    expected = granularity if granularity in ("none", "level", "image") else "instance"
    assert cfg.AID.GRANULARITY == expected


def check_teacher_of_the_zoo(file: str, cfg: CfgNode, student: nn.Module) -> None:
    """Classes and levels of the teacher are the student's."""
    path = cfg.TEACHER.CONFIG_FILE
    kind, depth = os.path.basename(file).split("_from_coco_")
    assert path.startswith(f"COCO-Detection/{kind.rpartition('_')[0]}_{depth[0]}_{depth[1:4]}_")
    url = model_zoo.get_checkpoint_url(path)
    assert cfg.TEACHER.WEIGHTS == url.replace(
        "https://dl.fbaipublicfiles.com/detectron2/", "detectron2://"
    )
    teacher_cfg = load_teacher_config(path)
    teacher = Teacher(build_without_weights(teacher_cfg), teacher_cfg)
    names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).thing_classes
    map_classes(teacher, cfg.TEACHER.CLASS_MAP, names)
    unknown = [names[k] for k in teacher.class_map.unknown]
    assert unknown == ([] if "COCO-Traffic" in file else ["Cyclist"])
    levels = ("p2", "p3", "p4", "p5", "p6") if "rcnn" in file else ("p3", "p4", "p5", "p6", "p7")
    assert check_teacher(teacher, student, cfg) == levels


def check_baseline(file: str, cfg: CfgNode) -> None:
    """Check that a student and its baseline differ only in the distillation."""
    folder, name = os.path.split(file.split("_from")[0])
    baseline = load(f"{BASELINES[folder]}/{name}_FPN.yaml")
    assert issubclass(META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE), DistillationMixin)
    student = cfg.clone()
    for key in ("TEACHER", "DISTILLATION", "AID", "OUTPUT_DIR", "VIS_PERIOD"):
        student[key] = baseline[key]
    student.MODEL.META_ARCHITECTURE = baseline.MODEL.META_ARCHITECTURE
    if "R101_from" in file:  # a student trains for half as long as a teacher
        student.SOLVER = baseline.SOLVER
    assert student.dump() == baseline.dump()


def test_mask_head_equals_the_model_zoo():
    model = load_config(os.path.join(ROOT, "Base-Mask-RCNN-FPN.yaml")).MODEL
    expected = model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml").MODEL
    assert model.MASK_ON and model.ROI_MASK_HEAD == expected.ROI_MASK_HEAD
