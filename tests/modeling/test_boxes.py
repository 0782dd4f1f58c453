"""IoU of boxes and anchors."""

import pytest
import torch
from detectron2.structures import Boxes, pairwise_iou

from aid.modeling.boxes import anchor_iou


@pytest.mark.parametrize("num_boxes", [0, 1, 20])
def test_anchor_iou_equals_pairwise_iou(num_boxes):
    torch.manual_seed(0)
    corners, sizes = torch.rand(2, 500, 2).mul(torch.tensor([[[90.0]], [[30.0]]]))
    boxes = torch.cat([corners, corners + sizes], dim=1)
    boxes[::50, 2:] = boxes[::50, :2]  # without area
    anchors, some = Boxes(boxes), Boxes(boxes[::25][:num_boxes])
    iou = anchor_iou(some, anchors)
    assert torch.equal(iou, pairwise_iou(some, anchors))
