"""Images of weights: positions, colors and enlargement."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from aid.utils.drawing import COLORMAP, draw_boxes, draw_weights, enlarge, weight_image
from aid_tools.prediction.writers import draw
from aid_tools.report.figures import draw_sheet
from aid_tools.visualization.canvas import enlarged as enlarged_to
from aid_tools.visualization.page import MAX_CELL_HEIGHT, _sizes


def color_of(weight: float) -> list[int]:
    return [int(255 * c) for c in COLORMAP(weight)[:3]]


def test_high_image_is_enlarged_to_what_a_jpeg_can_have():
    assert enlarge(np.zeros((3000, 5, 3), np.uint8))[1] == 21


def test_small_images_are_enlarged_by_whole_factors():
    image = np.arange(2 * 320 * 3, dtype=np.uint8).reshape(2, 320, 3)
    enlarged, factor = enlarge(image)
    assert factor == 3 and enlarged.shape == (6, 960, 3)
    assert (enlarged[::3, ::3] == image).all() and (enlarged[1::3, 2::3] == image).all()
    assert enlarge(np.zeros((2, 1242, 3), np.uint8))[1] == 1


def test_box_is_drawn_on_a_copy():
    image = np.zeros((100, 1000, 3), np.uint8)
    drawn = draw_boxes(image, np.array([[200.0, 40.0, 300.0, 90.0]]), [(255, 0, 9)], ["x"])
    assert image.sum() == 0
    assert drawn[65, 200].tolist() == drawn[90, 250].tolist() == [255, 0, 9]
    assert drawn[65, 250].sum() == 0


def test_boxes_have_the_color_of_their_weight():
    image = np.zeros((60, 480, 3), np.uint8)
    boxes = torch.tensor([[10.0, 20.0, 60.0, 50.0], [200.0, 20.0, 260.0, 50.0]])
    drawn = draw_weights(image, boxes, torch.tensor([0.1, 0.9]), torch.tensor([23.0, 1.0]))
    assert drawn.shape == (120, 960, 3)
    assert drawn[70, 20].tolist() == color_of(0.1) and drawn[70, 400].tolist() == color_of(0.9)


def test_map_is_drawn_below_the_image_at_its_size():
    instances = Instances((50, 90))
    instances.gt_boxes = Boxes(torch.zeros(0, 4))
    sample = {"image": torch.zeros(3, 50, 90, dtype=torch.uint8), "instances": instances}
    cells = torch.zeros(8, 12)  # from a batch padded to 64 x 96
    cells[0, 1] = 1.0
    no_values = torch.zeros(0)
    drawn = weight_image(sample, "BGR", no_values, no_values, cells, stride=8)
    factor = enlarge(np.zeros((50, 90, 3), np.uint8))[1]
    assert drawn.shape == (3, 100 * factor, 90 * factor)
    below = drawn[:, 50 * factor :]
    assert below[:, 4 * factor, 12 * factor].tolist() == color_of(1.0)
    assert below[:, 4 * factor, 4 * factor].tolist() == color_of(0.0)


def test_image_of_a_bgr_detector_is_converted_to_rgb():
    instances = Instances((50, 960))
    instances.gt_boxes = Boxes(torch.zeros(0, 4))
    red = torch.zeros(3, 50, 960, dtype=torch.uint8)
    red[2] = 200
    sample = {"image": red, "instances": instances}
    no_values = torch.zeros(0)
    drawn = weight_image(sample, "BGR", no_values, no_values, torch.zeros(7, 120), stride=8)
    assert drawn[:, 10, 10].tolist() == [200, 0, 0]


def test_enlargement_is_limited_by_the_area():
    image = np.zeros((2000, 20, 3), np.uint8)
    enlarged, factor = enlarge(image)
    assert factor == 14 and enlarged.shape == (28_000, 280, 3)
    assert enlarged_to(image, 960).shape == (29_000, 290, 3)
    assert enlarged_to(np.zeros((200, 480, 3), np.uint8), 960).shape == (400, 960, 3)
    assert enlarged_to(np.zeros((200, 1242, 3), np.uint8), 960).shape == (200, 1242, 3)
    assert enlarge(np.zeros((3000, 4000, 3), np.uint8))[1] == 1


def test_high_image_is_limited_in_every_figure(monkeypatch):
    area = 1 << 18
    for module in ("aid.utils.drawing", "aid_tools.visualization.canvas"):
        monkeypatch.setattr(f"{module}.MAX_AREA", area)
    image = np.zeros((2000, 20, 3), np.uint8)
    none = Instances((2000, 20))
    none.pred_boxes = Boxes(torch.zeros(0, 4))
    none.pred_classes, none.scores = torch.zeros(0, dtype=torch.int64), torch.zeros(0)
    assert draw(image, none, ["a"]).size <= 3 * area
    assert enlarged_to(image, 1200).size <= 3.1 * area
    figure = draw_sheet([image], [np.zeros((0, 4))], [[none]], None, ["run"], ["a"], 0.5)
    width, height = figure.get_size_inches()
    plt.close(figure)
    assert height < 5 * width
    sizes = _sizes(image, 4)
    assert sizes.cell == pytest.approx((MAX_CELL_HEIGHT / 100, MAX_CELL_HEIGHT))
