"""Precision-recall curves from saved detections, whose area is the reported AP."""

import json
import os

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.structures import Boxes, Instances

from aid.config import load_config
from aid.data.kitti import register_kitti
from aid.evaluation import build_evaluator
from aid.evaluation.kitti_metric import DIFFICULTIES
from aid.utils.errors import AIDError
from aid_tools.report.precision_recall import read_curves
from aid_tools.report.runs import Run

CLASSES = ["Car", "Pedestrian", "Cyclist"]


@pytest.fixture
def kitti_dataset(kitti, tmp_path):
    """Name of a dataset in KITTI's format, 50 images with a car and a pedestrian each."""
    boxes = {"Car": "10 5 70 55", "Pedestrian": "90 10 150 70"}
    labels = [f"{kind} 0 0 0 {box} 1 1 1 0 0 9 0" for kind, box in boxes.items()]
    root = kitti({f"{i:06}": labels for i in range(50)})
    name = f"kitti_{tmp_path.name}"
    register_kitti(name, root, "train", "")
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def random_detections(record: dict, generator: torch.Generator, shift: float) -> Instances:
    """Labeled boxes, shifted by up to ``shift`` pixels, and as many wrong ones."""
    detections = Instances((record["height"], record["width"]))
    boxes = torch.tensor([x["bbox"] for x in record["annotations"]])
    noise = shift * torch.rand(boxes.shape, generator=generator)
    detections.pred_boxes = Boxes(torch.cat([boxes + noise, boxes / 3]))
    detections.pred_classes = torch.tensor([x["category_id"] for x in record["annotations"]] * 2)
    detections.scores = torch.rand(2 * len(boxes), generator=generator)
    return detections


@pytest.fixture
def evaluate(tiny_config, tmp_path):
    """A function (dataset, shift of boxes, whether any is detected) -> evaluated run."""

    def run(name: str, shift: float = 8.0, any_detected: bool = True) -> Run:
        generator = torch.Generator().manual_seed(5)
        folder = str(tmp_path / "run")
        evaluator = build_evaluator(name, os.path.join(folder, "inference"))
        evaluator.reset()
        for record in DatasetCatalog.get(name):
            detections = random_detections(record, generator, shift)
            detections = detections[detections.scores > (0 if any_detected else 2)]
            evaluator.process([record], [{"instances": detections}])
        metrics = flatten_results_dict(evaluator.evaluate())
        cfg = load_config(tiny_config("faster_rcnn", ["DATASETS.TEST", (name,)]))
        return Run(folder, cfg, [{"iteration": 9, **metrics}])

    return run


def test_area_under_kitti_curves_equals_the_reported_ap(evaluate, kitti_dataset):
    run = evaluate(kitti_dataset)
    reported, curves = run.metrics_at_end("kitti"), read_curves(run, "kitti")
    assert list(curves) == CLASSES
    for name, by_difficulty in curves.items():
        assert list(by_difficulty) == list(DIFFICULTIES)
        for difficulty, curve in by_difficulty.items():
            assert curve.ap == reported[f"AP_R40-{name}-{difficulty}"]
            assert 100 * curve.precision[1:].mean() == pytest.approx(curve.ap)
            assert len(curve.recall) == len(curve.precision) == 41
            assert (np.diff(curve.precision) <= 0).all()
    assert 0 < curves["Car"]["easy"].ap < 100 and curves["Cyclist"]["easy"].ap == 0


def test_area_under_coco_curves_equals_the_reported_ap(evaluate, toy_dataset):
    run = evaluate(toy_dataset, shift=3.0)
    reported, curves = run.metrics_at_end("bbox"), read_curves(run, "bbox")
    assert list(curves) == CLASSES
    for iou in ("50", "75"):
        aps = [100 * x[f"IoU 0.{iou}"].precision.mean() for x in curves.values()]
        assert np.mean(aps) == pytest.approx(reported[f"AP{iou}"])
        assert [x[f"IoU 0.{iou}"].ap for x in curves.values()] == pytest.approx(aps)
    assert 0 < reported["AP75"] < reported["AP50"] < 100


def test_kitti_datasets_have_coco_curves(evaluate, kitti_dataset):
    run = evaluate(kitti_dataset)
    curves = read_curves(run, "bbox")
    assert list(curves) == ["Car", "Pedestrian"]  # without any cyclist
    aps = [x["IoU 0.50"].ap for x in curves.values()]
    assert np.mean(aps) == pytest.approx(run.metrics_at_end("bbox")["AP50"])


@pytest.mark.parametrize("metric", ["kitti", "bbox"])
def test_precision_without_detections_is_zero(evaluate, kitti_dataset, metric):
    curves = read_curves(evaluate(kitti_dataset, any_detected=False), metric)
    assert all(x.ap == 0 and not x.precision.any() for y in curves.values() for x in y.values())
    assert "Car" in curves


def test_missing_or_outdated_detections_are_refused(evaluate, kitti_dataset):
    run = evaluate(kitti_dataset)
    key = "kitti/AP_R40-Car-easy"
    older = Run(run.folder, run.cfg, [{**run.metrics[0], key: run.metrics[0][key] - 1}])
    with pytest.raises(
        AIDError, match="inference does not belong to the last evaluation .*AP_R40-Car"
    ):
        read_curves(older, "kitti")
    older = Run(run.folder, run.cfg, [{**run.metrics[0], "bbox/AP50": 0.0}])
    with pytest.raises(AIDError, match="not belong to the last evaluation .*--resume"):
        read_curves(older, "bbox")
    results = os.path.join(run.folder, "inference/coco_instances_results.json")
    for content in (
        "{",
        "[{}]",
        "7",
        '[{"image_id": 999, "category_id": 0, "bbox": [0, 0, 1, 1]}]',
    ):
        with open(results, "w") as f:
            f.write(content)
        with pytest.raises(AIDError, match="holds no detections on .* in COCO's format"):
            read_curves(run, "bbox")
    os.remove(results)
    with pytest.raises(AIDError, match="coco_instances_results.json cannot be read: No such file"):
        read_curves(run, "bbox")
    os.rename(os.path.join(run.folder, "inference"), os.path.join(run.folder, "gone"))
    with pytest.raises(AIDError, match="does not exist"):
        read_curves(run, "kitti")


def test_classes_are_named_by_the_json_file(evaluate, toy_dataset, tmp_path):
    """The labels of a dataset in COCO's format are those of its file."""
    run = evaluate(toy_dataset, shift=3.0)
    converted = os.path.join(run.folder, "inference", f"{toy_dataset}_coco_format.json")
    with open(converted) as f:
        content = json.load(f)
    for category in content["categories"]:
        category["name"] = category["name"].upper()
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(content))
    os.remove(converted)
    MetadataCatalog.get(toy_dataset).json_file = str(path)
    assert list(read_curves(run, "bbox")) == [name.upper() for name in CLASSES]
