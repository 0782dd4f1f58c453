"""Boxes painted onto maps, cell by cell."""

import pytest
import torch

from aid.modeling.weighting.maps import rasterize_boxes

pytestmark = pytest.mark.core


def paint(boxes, weights, background=0.5, size=(4, 6), stride=8):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    weights = torch.tensor(weights, dtype=torch.float32)
    rest = {"p3": torch.tensor([background])}
    return rasterize_boxes([boxes], weights, rest, {"p3": (size, stride)})["p3"][0, 0]


def test_a_box_fills_the_cells_it_touches():
    found = paint([[8, 0, 24, 16]], [0.25])
    expected = torch.full((4, 6), 0.5)
    expected[0:2, 1:3] = 0.25
    assert torch.equal(found, expected)


def test_the_smaller_box_wins():
    large, small = [0, 0, 48, 32], [16, 8, 32, 24]
    found = paint([large, small], [0.25, 0.75])
    assert (found[1:3, 2:4] == 0.75).all() and found.sum() == 0.75 * 4 + 0.25 * 20
    assert torch.equal(found, paint([small, large], [0.75, 0.25]))


def test_of_boxes_on_one_spot_the_smaller_weight_wins_in_any_order():
    box = [8, 8, 24, 24]
    assert torch.equal(paint([box, box], [0.9, 0.1]), paint([box, box], [0.1, 0.9]))
    assert paint([box, box], [0.9, 0.1])[1, 1] == 0.1


def test_every_box_covers_a_cell():
    for box in ([3, 3, 3.5, 3.5], [9, 9, 9, 9], [47.9, 31.9, 60, 60], [-9, -9, -5, -5]):
        assert (paint([box], [0.25]) == 0.25).sum() >= 1
    assert paint([[9, 9, 9, 9]], [0.25])[1, 1] == 0.25


def test_a_box_is_cut_at_the_borders_of_the_map():
    assert (paint([[-100, -100, 500, 500]], [0.25]) == 0.25).all()


def test_images_do_not_mix():
    boxes = [torch.zeros(0, 4), torch.tensor([[0.0, 0, 8, 8]]), torch.zeros(0, 4)]
    rest, levels = {"p3": torch.tensor([0.1, 0.2, 0.3])}, {"p3": ((2, 2), 8)}
    found = rasterize_boxes(boxes, torch.tensor([0.25]), rest, levels)["p3"]
    assert found.shape == (3, 1, 2, 2)
    assert (
        found.flatten(1).tolist()
        == torch.tensor([[0.1] * 4, [0.25, 0.2, 0.2, 0.2], [0.3] * 4]).tolist()
    )


@pytest.mark.parametrize("sizes", [[(12, 40), (6, 20), (3, 10), (2, 5)], [(13, 37), (7, 19)]])
def test_levels_together_are_the_levels_one_by_one(sizes):
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
    found = rasterize_boxes(boxes, weights, rest, levels)
    for level, about in levels.items():
        alone = rasterize_boxes(boxes, weights, {level: rest[level]}, {level: about})
        assert torch.equal(found[level], alone[level])
        assert (alone[level][0] != rest[level][0]).any()


def test_levels_whose_cells_do_not_nest():
    box, weight = [torch.tensor([[0.0, 0, 8, 8]])], torch.tensor([0.25])
    levels = {"a": ((4, 4), 8), "b": ((3, 3), 12), "c": ((5, 5), 16)}
    found = rasterize_boxes(box, weight, {level: torch.tensor([0.5]) for level in levels}, levels)
    for level, (size, _) in levels.items():
        expected = torch.full(size, 0.5)
        expected[0, 0] = 0.25
        assert torch.equal(found[level][0, 0], expected)
