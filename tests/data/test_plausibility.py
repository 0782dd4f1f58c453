"""Warnings about boxes in another convention."""

import pytest
from detectron2.structures import BoxMode

from aid.data.plausibility import warn_of_boxes

PIXELS = [[1, 2, 30, 20], [60, 40, 30, 20], [70, 30, 26, 34], [5, 5, 40, 40]]


def records(boxes, mode=BoxMode.XYWH_ABS):
    labels = [{"bbox": box, "bbox_mode": mode, "category_id": 0} for box in boxes]
    return [{"width": 96, "height": 64, "annotations": labels}, {"file_name": "without size"}]


def corners(boxes):
    return [[x, y, x + w, y + h] for x, y, w, h in boxes]


def shares(boxes):
    return [[x / 96, y / 64, w / 96, h / 64] for x, y, w, h in boxes]


@pytest.mark.parametrize(
    "boxes, mode, message",
    [
        (PIXELS, BoxMode.XYWH_ABS, None),
        (corners(PIXELS), BoxMode.XYXY_ABS, None),
        ([], BoxMode.XYWH_ABS, None),
        ([*4 * PIXELS, [60, 40, 90, 60]], BoxMode.XYWH_ABS, None),  # 1 of 17 boxes
        (corners(PIXELS), BoxMode.XYWH_ABS, "a set: 2 of 4 boxes leave their image"),
        (shares(PIXELS), BoxMode.XYWH_ABS, "a set: all boxes lie within one pixel"),
        (corners(shares(PIXELS)), BoxMode.XYXY_ABS, "a set: all boxes lie within one pixel"),
        ([[1, 2, 3, 4, 90]], BoxMode.XYWHA_ABS, None),
    ],
)
def test_boxes_in_another_convention_are_warned_about(boxes, mode, message, caplog):
    warn_of_boxes("a set", records(boxes, mode))
    messages = [x.getMessage() for x in caplog.records]
    assert len(messages) == bool(message) and all(x.startswith(message) for x in messages)
