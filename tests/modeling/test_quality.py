"""Detection quality: score and IoU of a teacher's best detection of each instance."""

import pytest
import torch
from detectron2.structures import Boxes, ImageList, Instances
from torch import nn

from aid.modeling.families import best_detections
from aid.modeling.families.base import detect


def instances(boxes, classes, scores=None):
    detections = Instances((64, 96))
    name = "pred" if scores else "gt"
    detections.set(f"{name}_boxes", Boxes(torch.tensor(boxes).reshape(-1, 4)))
    detections.set(f"{name}_classes", torch.tensor(classes, dtype=torch.int64))
    if scores:
        detections.scores = torch.tensor(scores)
    return detections


def test_quality_is_that_of_the_best_detection_of_the_class():
    truth = [
        instances([[0.0, 0, 10, 10], [40, 0, 50, 10], [60, 0, 70, 10]], [0, 1, 2]),
        instances([], []),
    ]
    boxes = [[0.0, 0, 10, 10], [0, 0, 10, 5], [40, 0, 50, 10]]
    detections = [
        instances(boxes, [0, 0, 2], [0.16, 0.5, 0.9]),
        instances([[0.0, 0, 10, 10]], [0], [0.9]),
    ]
    best = best_detections(detections, truth)
    # IoU 1/2 times score 0.5 exceeds 1 times 0.16; the others lack a detection of their class.
    torch.testing.assert_close(best.score, torch.tensor([0.5, 0.0, 0.0]))
    torch.testing.assert_close(best.iou, torch.tensor([0.5, 0.0, 0.0]))


@pytest.mark.parametrize("kind", ["faster_rcnn", "cascade_rcnn", "retinanet", "gfl", "fcos"])
def test_detections_from_features_equal_inference(kind, tiny_model, make_batch):
    keys = [f"MODEL.{x}.SCORE_THRESH_TEST" for x in ("RETINANET", "GFL", "FCOS")]
    model = tiny_model(kind, [x for key in keys for x in (key, 0.0)])
    if kind == "fcos":  # untrained boxes have no area, and inference drops those
        nn.init.ones_(model.head.bbox_pred.bias)
    batch = make_batch()
    expected = model.inference(batch) if "rcnn" in kind else model(batch)
    images = model.preprocess_image(batch)
    assert isinstance(images, ImageList)
    with torch.no_grad():
        detections = detect(model, images, model.backbone(images.tensor))
    for actual, reference in zip(detections, expected, strict=True):
        assert len(actual) > 0
        torch.testing.assert_close(
            actual.pred_boxes.tensor, reference["instances"].pred_boxes.tensor, rtol=0, atol=1e-4
        )
