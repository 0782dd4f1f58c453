"""INPUT.IGNORE_REGIONS in training: plain detectors and students, from labels to losses."""

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.events import EventStorage

from aid.engine import AIDTrainer
from aid.utils.errors import AIDError


@pytest.fixture
def all_ignored(toy_dataset):
    """The toy data with one region that is as large as the image."""
    name, records = f"{toy_dataset}_ignored", DatasetCatalog.get(toy_dataset)
    for x in records:
        box = {"bbox": [0, 0, x["width"], x["height"]], "bbox_mode": BoxMode.XYXY_ABS}
        x["annotations"].append({**box, "category_id": 0, "iscrowd": 1})
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(thing_classes=["Car", "Pedestrian", "Cyclist"])
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


@pytest.mark.parametrize("is_on", [False, True])
@pytest.mark.parametrize("is_student", [False, True])
def test_key_turns_negatives_in_regions_off(is_on, is_student, all_ignored, student_config):
    cfg = student_config("faster_rcnn", opts=["DATASETS.TRAIN", (all_ignored,)])
    cfg.DATALOADER.NUM_WORKERS, cfg.SOLVER.IMS_PER_BATCH = 0, 2
    cfg.INPUT.IGNORE_REGIONS = is_on
    if not is_student:
        cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    torch.manual_seed(0)
    model = AIDTrainer.build_model(cfg).train()
    batch = next(iter(AIDTrainer.build_train_loader(cfg)))
    with EventStorage() as storage:
        losses = model(batch)
        num_negatives = storage.latest()["roi_head/num_bg_samples"][0]
    assert all(x.isfinite() for x in losses.values())
    assert any("distill" in x for x in losses) == is_student
    # Proposals are clipped to the image.
    assert (num_negatives == 0) == is_on


def test_detector_that_cannot_respect_regions_is_refused(tiny_config, student_config):
    cfg = student_config("faster_rcnn", opts=["INPUT.IGNORE_REGIONS", True])
    cfg.MODEL.META_ARCHITECTURE = "ProposalNetwork"
    with pytest.raises(AIDError, match="INPUT.IGNORE_REGIONS is on, which a ProposalNetwork does"):
        AIDTrainer.build_model(cfg)
