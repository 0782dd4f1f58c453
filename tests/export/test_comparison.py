"""Comparison of exported files with their detectors: tolerated and refused differences."""

import math

import pytest
import torch
from detectron2.structures import Boxes, Instances

from aid.utils.errors import AIDError
from aid_tools.cost import latencies
from aid_tools.export import Row, compare_detections, table
from aid_tools.export.comparison import Difference

IMAGE = torch.zeros(3, 40, 60)
BOXES = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [0, 20, 10, 30]])
SCORES = torch.tensor([0.9, 0.5, 0.5])
CLASSES = torch.tensor([0, 1, 1])


def detector(batch, number=3):
    actual = Instances(tuple(batch[0]["image"].shape[1:]))
    actual.pred_boxes, actual.scores, actual.pred_classes = Boxes(BOXES), SCORES, CLASSES
    return [{"instances": actual[:number]}]


def difference(boxes=BOXES, scores=SCORES, classes=CLASSES):
    return compare_detections(
        lambda image: (boxes, scores, classes), detector, [IMAGE], "model.onnx"
    )


def test_identical_outputs_have_no_difference():
    assert difference() == Difference({"boxes": 0.0, "scores": 0.0}, 6)


def test_order_of_equal_scores_is_ignored():
    order = [0, 2, 1]
    assert difference(BOXES[order], SCORES[order], CLASSES[order]).largest["boxes"] == 0


def test_duplicate_boxes_are_matched_by_score():
    boxes = BOXES[[0, 1, 1]]

    def twice(batch):
        (output,) = detector(batch)
        output["instances"].pred_boxes = Boxes(boxes)
        output["instances"].scores = torch.tensor([0.9, 0.5, 0.4])
        return [output]

    order = [2, 0, 1]
    outputs = boxes[order], torch.tensor([0.4, 0.9, 0.5]), CLASSES[order]
    assert compare_detections(lambda image: outputs, twice, [IMAGE], "x").largest == {
        "boxes": 0,
        "scores": 0,
    }


def test_largest_difference_is_returned():
    actual = difference(BOXES + torch.tensor([[0.0], [0.05], [0.02]]), SCORES + 5e-4)
    assert actual.largest == {
        "boxes": pytest.approx(0.05, 1e-4),
        "scores": pytest.approx(5e-4, 1e-3),
    }


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"boxes": BOXES + 0.2}, "boxes differ .* by 0.2"),
        ({"scores": SCORES * 0.99}, "scores differ .* by 0.009"),
        ({"classes": torch.tensor([0, 1, 0])}, "boxes differ .* by inf"),
        ({"boxes": BOXES[[0, 1, 1]]}, "boxes differ"),
        ({"scores": SCORES * torch.nan}, "scores differ .* by nan"),
        ({"boxes": BOXES[:2], "scores": SCORES[:2], "classes": CLASSES[:2]}, "2 objects.* 3"),
    ],
)
def test_large_differences_are_refused(changed, message):
    with pytest.raises(AIDError, match=f"model.onnx is not used: .*{message}"):
        difference(**changed)


def test_comparison_without_detections_is_refused():
    with pytest.raises(AIDError, match="finds nothing"):
        compare_detections(
            lambda image: (BOXES[:0], SCORES[:0], CLASSES[:0]),
            lambda batch: detector(batch, 0),
            [IMAGE],
            "model.onnx",
        )


def test_every_image_is_compared_in_two_sizes():
    seen = []

    def run(image):
        seen.append(tuple(image.shape))
        return BOXES, SCORES, CLASSES

    compare_detections(run, detector, [IMAGE, IMAGE[:, :20]], "model.onnx")
    assert seen == [(3, 40, 60), (3, 30, 45), (3, 20, 60), (3, 15, 45)]


def test_latency_is_the_median_after_the_warm_up(monkeypatch):
    clock = {"now": 0.0}
    monkeypatch.setattr("aid_tools.cost.time.perf_counter", lambda: clock["now"])
    calls = []

    def run(seconds):
        def step():
            calls.append(seconds)
            first = calls.count(seconds) <= 5  # slow warm-up
            clock["now"] += 100 if first else seconds * calls.count(seconds)

        return step

    # Runs 6, 7 and 8 take 6, 7 and 8 times the seconds.
    assert latencies([run(0.5), run(0.25)], 3) == [3500.0, 1750.0]
    assert calls[:4] == [0.5, 0.25, 0.5, 0.25]


def test_table_of_times_and_differences():
    rows = [
        Row("student", 47.44, 11.844, None, 23.62),
        Row("onnx", 47.68, 11.844, Difference({"boxes": 6e-5, "scores": 0.0}, 3), 17.2),
    ]
    lines = table(rows).splitlines()
    cells = [[x.strip() for x in line.split("|")[1:-1]] for line in lines[2:]]
    assert cells[0] == ["student", "11.84", "47.4", "23.6", ""]
    assert cells[1] == ["onnx", "11.84", "47.7", "17.2", "boxes 6e-05 px, scores 0"]
    rows[0] = Row("a|b", 47.44, 11.844, None, 23.62, {"bbox": 20.0, "segm": 9.876}, 5.678)
    lines = table(rows).splitlines()
    assert lines[0].split("|")[2].strip() == "AP" and "GFLOPs" in lines[0]
    assert lines[2].count("|") == 8 and "bbox 20.00, segm 9.88" in lines[2] and "5.68" in lines[2]
    assert [x.strip() for x in lines[3].split("|")[2:5]] == ["", "11.84", ""]
    assert math.isnan(Row("x", 1, 1).milliseconds)


def test_table_has_sizes_of_images_only_if_they_differ():
    small, large = Row("student", 1, 1, pixels="96x320"), Row("teacher", 1, 1, pixels="192x640")
    assert "pixels" not in table([small, small])
    assert [line.split("|")[2].strip() for line in table([small, large]).splitlines()[2:]] == [
        "96x320",
        "192x640",
    ]
