"""Regions to ignore: read from annotations, and transformed as the labels of their image."""

import json
import logging
from itertools import islice

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Instances

from aid.config import load_config
from aid.data.build import build_train_loader
from aid.data.detections import DETECTIONS
from aid.data.ignore_regions import ignore_boxes, region_boxes
from aid.data.kitti import load_kitti

CROP = ["INPUT.CROP.ENABLED", True, "INPUT.CROP.SIZE", [0.6, 0.6]]


@pytest.fixture
def crowded(toy_dataset):
    """The toy data with a region at the box of each object, but none in the first image."""
    name, records = f"{toy_dataset}_crowded", DatasetCatalog.get(toy_dataset)
    for record in records[1:]:
        regions = [{**x, "iscrowd": 1, "segmentation": []} for x in record["annotations"]]
        record["annotations"] += [*regions, {**regions[0], "category_id": 2}]  # for two classes
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(thing_classes=["Car", "Pedestrian", "Cyclist"])
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


@pytest.fixture
def batches(tiny_config, crowded):
    """A function (key, opts) -> 12 batches of flipped and resized images."""

    def load(is_on, opts=()):
        keys = ["DATASETS.TRAIN", (crowded,), "SOLVER.IMS_PER_BATCH", 2]
        keys += ["DATALOADER.NUM_WORKERS", 0, "INPUT.MIN_SIZE_TRAIN", (48, 56, 64)]
        keys += ["INPUT.IGNORE_REGIONS", is_on]
        cfg = load_config(tiny_config("faster_rcnn", [*keys, *opts]))
        return list(islice(build_train_loader(cfg), 12))

    return load


def check(whole, without):
    """Compare regions with the boxes of the labels, and all else with a stream without regions."""
    num_boxes = num_empty = 0
    for batch, other in zip(whole, without, strict=True):
        for x, y in zip(batch, other, strict=True):
            truth, regions = x["instances"], ignore_boxes(x["instances"]).tensor
            if x["image_id"] == 0:
                assert len(regions) == 0
                num_empty += 1
            else:
                torch.testing.assert_close(regions, truth.gt_boxes.tensor)
            num_boxes += len(regions)
            assert type(y["instances"]) is Instances and torch.equal(x["image"], y["image"])
            assert torch.equal(truth.gt_boxes.tensor, y["instances"].gt_boxes.tensor)
            assert torch.equal(truth.gt_classes, y["instances"].gt_classes)
    assert num_boxes > 20 and num_empty > 0


@pytest.mark.parametrize("opts", [[], CROP, ["DATALOADER.NUM_WORKERS", 2]])
def test_regions_are_transformed_as_labels(opts, batches):
    check(batches(True, opts), batches(False, opts))


def test_detections_of_a_teacher_come_along(batches, tmp_path):
    entry = {"image_id": 3, "category_id": 2, "bbox": [1.5, 2, 10, 20], "score": 0.25}
    (tmp_path / "found.json").write_text(json.dumps([entry]))
    opts = ["TEACHER.DETECTIONS", str(tmp_path / "found.json")]
    whole, without = batches(True, opts), batches(False, opts)
    check(whole, without)
    for x, y in zip(sum(whole, []), sum(without, []), strict=True):
        assert torch.equal(x[DETECTIONS].pred_boxes.tensor, y[DETECTIONS].pred_boxes.tensor)


def test_unlabeled_images_have_no_regions(batches, crowded):
    opts = ["DATASETS.UNLABELED", (crowded,), "UNLABELED.SHARE", 0.5]
    for labeled, unlabeled in batches(True, opts):
        assert unlabeled["unlabeled"] and "unlabeled" not in labeled
        assert not len(ignore_boxes(unlabeled["instances"]))


def test_regions_need_no_mask(batches, crowded):
    for record in DatasetCatalog.get(crowded):
        for x in record["annotations"]:
            if not x["iscrowd"]:
                x1, y1, x2, y2 = x["bbox"]
                x["segmentation"] = [[x1, y1, x2, y1, x2, y2, x1, y2]]
    masks = ["MODEL.MASK_ON", True]
    check(batches(True, masks), batches(False, masks))


def test_number_of_regions_is_logged(batches, caplog):
    with caplog.at_level(logging.INFO, "aid"):
        batches(True)
    assert "INPUT.IGNORE_REGIONS: 14 ignore regions in 6 of 7 training images" in caplog.text


def test_regions_of_kitti(kitti):
    kinds = ("Car", "Van", "DontCare", "Truck")
    lines = [f"{k} 0 0 0 {10 * i} 2 {10 * i + 8} 20 1 1 1 0 0 9 0" for i, k in enumerate(kinds)]
    (record,) = load_kitti(kitti({"000003": lines}), "train", "")
    expected = [[10, 2, 18, 20], [20, 2, 28, 20], [30, 2, 38, 20]]  # once for all classes
    np.testing.assert_array_equal(region_boxes(record["annotations"]), expected)
    assert region_boxes([]).shape == (0, 4)
