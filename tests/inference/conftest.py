"""Fixtures: an output folder whose dataset is no longer registered."""

import json

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from aid.config import load_config
from aid.data import register_coco
from aid.engine import AIDTrainer, start_run

CATEGORIES = [{"id": 90, "name": "pallet"}, {"id": 3, "name": "forklift"}, {"id": 7, "name": "man"}]


@pytest.fixture
def run_folder(tiny_config, toy_dataset, tmp_path):
    """A function (kind, opts) -> output folder of a detector of a user's data, now unregistered."""

    def make(kind: str = "faster_rcnn", opts=()) -> str:
        images = [
            {"id": i, "file_name": f"{i}.png", "height": 64, "width": 96} for i in (0, 1, 3, 4)
        ]
        labels = [
            {"id": i + 1, "image_id": x["id"], "category_id": 7, "bbox": [8, 8, 30, 30]}
            for i, x in enumerate(images)
        ]
        labels = [{**x, "area": 900, "iscrowd": 0} for x in labels]
        content = {"images": images, "annotations": labels, "categories": CATEGORIES}
        (tmp_path / "own.json").write_text(json.dumps(content))
        name = f"own_{tmp_path.name}"
        register_coco(name, str(tmp_path / "own.json"), str(tmp_path))
        keys = ["DATASETS.TRAIN", (name,), "DATASETS.TEST", (name,), "DATALOADER.NUM_WORKERS", 0]
        keys += ["SOLVER.IMS_PER_BATCH", 2, "OUTPUT_DIR", str(tmp_path / "student")]
        keys += ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, *opts]
        cfg = load_config(tiny_config(kind, keys))
        (tmp_path / "student").mkdir(exist_ok=True)
        torch.manual_seed(5)
        try:
            trainer = AIDTrainer(cfg)
            start_run(cfg, resume=False)
            trainer.checkpointer.save("model_final")
        finally:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        (tmp_path / "own.json").unlink()
        return cfg.OUTPUT_DIR

    return make
