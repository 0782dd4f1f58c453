"""Contact sheet of the instances with the smallest and largest weights."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from aid_tools.visualization.contact_sheet import Entry, draw_contact_sheet, entries_of, extremes

CAR = Entry("a.png", (10.0, 10.0, 30.0, 20.0), "Car", 0.5, 7.0, "cls", 4.2)


def test_extremes_are_ordered_by_weight():
    entries = [replace(CAR, weight=weight) for weight in (0.5, 0.1, 0.9, 0.3, 0.7)]
    smallest, largest = extremes(entries, 2)
    assert [x.weight for x in smallest] == [0.1, 0.3] and [x.weight for x in largest] == [0.9, 0.7]


def test_extremes_are_disjoint_and_ties_are_ordered_by_loss():
    entries = [replace(CAR, weight=0.0, loss=loss) for loss in (30.0, float("inf"), 50.0)]
    smallest, largest = extremes(entries, 2)
    assert [x.loss for x in smallest] == [float("inf"), 50.0] and [x.loss for x in largest] == [
        30.0
    ]


def test_entry_describes_loss_weight_and_largest_component(make_seen):
    instances = Instances((64, 96))
    instances.gt_boxes = Boxes(torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]))
    instances.gt_classes = torch.tensor([1, 0])
    sample = {"file_name": "x/7.png", "instances": instances}
    first, second = entries_of(make_seen((4.0, torch.inf)), sample, ["Car", "Cyclist"])
    assert first.category == "Cyclist" and first.box == (1, 2, 3, 4) and first.loss == 4
    assert first.weight == pytest.approx(np.exp(-0.4)) and (first.part, first.share) == (
        "cls",
        0.75,
    )
    assert second.loss == np.inf and second.weight == 0 and second.share == 1


def test_names_with_line_breaks_overlap_no_other_text():
    car = replace(CAR, category="Car\n(left)")
    images = {"a.png": np.zeros((64, 96, 3), np.uint8)}
    page = draw_contact_sheet([("teacher\n1", [car])], images, "a\nSheet")
    shown = [text.get_text() for text in page.figure.texts]
    assert {"a Sheet", "teacher 1", "Car (left)  w 0.50"} <= set(shown)


def test_crops_show_the_object_and_its_caption():
    image = np.zeros((64, 96, 3), np.uint8)
    image[10:20, 10:30] = 200, 10, 10
    corner = replace(CAR, box=(90.0, 0.0, 96.0, 5.0), part="rpn_cls", category="Cyclist")
    page = draw_contact_sheet([("least", [CAR]), ("most", [corner])], {"a.png": image}, "Sheet")
    crop, cut = page.figure.axes
    box = crop.patches[0]
    assert box.get_width() == pytest.approx(2 * box.get_height())
    pixels = crop.images[0].get_array()
    x, y = (int(round(a)) for a in box.get_xy())
    inside = pixels[y : y + int(box.get_height()), x : x + int(box.get_width())]
    assert np.abs(inside.mean(axis=(0, 1)) - (200, 10, 10)).max() < 12
    assert pixels[0, 0].max() == 0
    left, top = cut.patches[0].get_xy()
    size = cut.images[0].get_array().shape
    assert left + cut.patches[0].get_width() == pytest.approx(size[1]) and top == 0
    captions = " ".join(text.get_text().replace("\n", " ") for text in page.figure.texts)
    for expected in (
        "Car  w 0.50",
        "D 7.0, largest component: class, 60 %",
        "largest component: objectness, 60 %",
        "a.png",
    ):
        assert expected in captions
