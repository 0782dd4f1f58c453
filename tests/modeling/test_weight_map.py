"""Weights of boxes rasterized onto feature maps."""

import pytest
import torch

from aid.modeling.weighting.maps import rasterize_boxes

pytestmark = pytest.mark.core


def paint(boxes, weights, background=0.5, size=(4, 6), stride=8):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    weights = torch.tensor(weights, dtype=torch.float32)
    rest = {"p3": torch.tensor([background])}
    return rasterize_boxes([boxes], weights, rest, {"p3": (size, stride)})["p3"][0, 0]


def test_box_fills_the_cells_it_touches():
    actual = paint([[8, 0, 24, 16]], [0.25])
    expected = torch.full((4, 6), 0.5)
    expected[0:2, 1:3] = 0.25
    assert torch.equal(actual, expected)


def test_smaller_box_takes_precedence():
    large, small = [0, 0, 48, 32], [16, 8, 32, 24]
    actual = paint([large, small], [0.25, 0.75])
    assert (actual[1:3, 2:4] == 0.75).all() and actual.sum() == 0.75 * 4 + 0.25 * 20
    assert torch.equal(actual, paint([small, large], [0.75, 0.25]))


def test_smallest_weight_of_coincident_boxes_takes_precedence():
    box = [8, 8, 24, 24]
    assert torch.equal(paint([box, box], [0.9, 0.1]), paint([box, box], [0.1, 0.9]))
    assert paint([box, box], [0.9, 0.1])[1, 1] == 0.1


def test_every_box_covers_a_cell():
    for box in ([3, 3, 3.5, 3.5], [9, 9, 9, 9], [47.9, 31.9, 60, 60], [-9, -9, -5, -5]):
        assert (paint([box], [0.25]) == 0.25).sum() >= 1
    assert paint([[9, 9, 9, 9]], [0.25])[1, 1] == 0.25


def test_box_is_clipped_at_the_borders_of_the_map():
    assert (paint([[-100, -100, 500, 500]], [0.25]) == 0.25).all()


def test_boxes_affect_only_their_own_image():
    boxes = [torch.zeros(0, 4), torch.tensor([[0.0, 0, 8, 8]]), torch.zeros(0, 4)]
    rest, levels = {"p3": torch.tensor([0.1, 0.2, 0.3])}, {"p3": ((2, 2), 8)}
    actual = rasterize_boxes(boxes, torch.tensor([0.25]), rest, levels)["p3"]
    assert actual.shape == (3, 1, 2, 2)
    assert (
        actual.flatten(1).tolist()
        == torch.tensor([[0.1] * 4, [0.25, 0.2, 0.2, 0.2], [0.3] * 4]).tolist()
    )


@pytest.mark.parametrize("sizes", [[(12, 40), (6, 20), (3, 10), (2, 5)], [(13, 37), (7, 19)]])
def test_joint_rasterization_equals_each_level_alone(sizes):
    generator = torch.Generator().manual_seed(0)
    levels = {f"p{i}": (size, 2**i) for i, size in enumerate(sizes, start=3)}
    boxes = []
    for num_boxes in (30, 0, 200):
        corner = torch.rand(num_boxes, 2, generator=generator) * 420 - 50
        side = torch.rand(num_boxes, 2, generator=generator) ** 3 * 80
        boxes.append(torch.cat([corner, corner + side], dim=1))
        boxes[-1][::3] = boxes[-1][::3].round()  # some borders between cells, and empty boxes
    weights = torch.rand(230, generator=generator)
    rest = {level: torch.rand(3, generator=generator) for level in levels}
    actual = rasterize_boxes(boxes, weights, rest, levels)
    for level, about in levels.items():
        alone = rasterize_boxes(boxes, weights, {level: rest[level]}, {level: about})
        assert torch.equal(actual[level], alone[level])
        assert (alone[level][0] != rest[level][0]).any()


def test_levels_with_non_nested_cells():
    box, weight = [torch.tensor([[0.0, 0, 8, 8]])], torch.tensor([0.25])
    levels = {"a": ((4, 4), 8), "b": ((3, 3), 12), "c": ((5, 5), 16)}
    actual = rasterize_boxes(box, weight, {level: torch.tensor([0.5]) for level in levels}, levels)
    for level, (size, _) in levels.items():
        expected = torch.full(size, 0.5)
        expected[0, 0] = 0.25
        assert torch.equal(actual[level][0, 0], expected)
