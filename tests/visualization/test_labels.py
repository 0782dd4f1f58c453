"""Placement of labels without overlaps."""

import itertools

import numpy as np
import pytest

from aid_tools.visualization.canvas import Canvas
from aid_tools.visualization.labels import Label, casing, draw_labels, place


def overlap(a, b) -> bool:
    return min(a[2], b[2]) - max(a[0], b[0]) > 1e-9 and min(a[3], b[3]) - max(a[1], b[1]) > 1e-9


def test_label_is_placed_above_its_box():
    ((x1, y1, x2, y2),) = place([(200, 100, 300, 180)], [(80, 30)], (1200, 360))
    assert (x1, y1, x2, y2) == (200, 70, 280, 100)


def test_label_at_the_upper_border_is_placed_below_its_box():
    ((_, y1, _, y2),) = place([(200, 0, 300, 80)], [(80, 30)], (1200, 360))
    assert (y1, y2) == (80, 110)


@pytest.mark.parametrize("size", [(1200, 360), (900, 680)])
def test_labels_stay_inside_and_do_not_overlap(size):
    random = np.random.default_rng(4)
    corners = random.uniform(0, 0.9, (14, 2)) * size
    ends = np.minimum(corners + random.uniform(15, 90, (14, 2)), size)
    boxes = [tuple(box) for box in np.concatenate([corners, ends], axis=1).tolist()]
    places = place(boxes, [(110, 32)] * 14, size)
    assert all(0 <= x1 and 0 <= y1 and x2 <= size[0] and y2 <= size[1] for x1, y1, x2, y2 in places)
    assert not any(overlap(a, b) for a, b in itertools.combinations(places, 2))


def test_labels_of_adjacent_boxes_do_not_overlap():
    boxes = [(500 + 30 * i, 150, 525 + 30 * i, 190) for i in range(6)]
    places = place(boxes, [(110, 32)] * 6, (1200, 360))
    assert not any(overlap(a, b) for a, b in itertools.combinations(places, 2))


def test_dark_lines_have_a_white_casing():
    assert casing((0.27, 0.0, 0.33)) == "white" and casing((0.99, 0.91, 0.14)) == "black"


def test_class_name_is_drawn_literally(tmp_path):
    canvas, name = Canvas(4, 3), "$\\frac{$\x1b"
    canvas.text(0.1, 0.1, name)
    axes = canvas.image(np.zeros((60, 80, 3), np.uint8), 0.5, 0.5, 3, 2)
    draw_labels(axes, [Label((10, 30, 40, 50), f"{name}\nD 1.0", (1.0, 1.0, 1.0, 1.0))])
    canvas.save(str(tmp_path / "page.png"))  # raises for an invalid formula
    (text,) = canvas.figure.texts
    assert text.get_text() == "\\$\\frac{\\$\\x1b"
