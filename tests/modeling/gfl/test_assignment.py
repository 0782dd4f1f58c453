"""ATSS assignment against a loop that follows the paper and known cases."""

import math
import statistics

import pytest
import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.structures import Boxes, pairwise_iou

from aid.modeling.detectors.gfl import assign_cells


def grid(*sizes, scale=2.0):
    """Anchors of levels with strides 8, 16, ... and the given numbers of cells (H, W)."""
    strides = [8 * 2**i for i in range(len(sizes))]
    make = DefaultAnchorGenerator(
        sizes=[[scale * x] for x in strides], aspect_ratios=[1.0], strides=strides, offset=0.0
    )
    return make([torch.zeros(1, 1, *size) for size in sizes])


def assign(boxes, anchors, topk):
    matched_gt, best = assign_cells(Boxes(torch.tensor(boxes).reshape(-1, 4)), anchors, topk)
    return matched_gt.tolist(), best.tolist()


def assign_by_loop(boxes, anchors, topk):
    """The algorithm of the paper, one instance and one cell at a time."""
    cells = Boxes.cat(anchors)
    iou = pairwise_iou(Boxes(torch.tensor(boxes)), cells).tolist()
    centers = cells.get_centers().tolist()
    claims = [{} for _ in centers]
    for g, (left, top, right, bottom) in enumerate(boxes):
        middle = (left + right) / 2, (top + bottom) / 2
        candidates, first = [], 0
        for level in anchors:
            cells_of_level = range(first, first + len(level))
            nearest = sorted(cells_of_level, key=lambda r: math.dist(centers[r], middle))
            candidates += nearest[:topk]
            first += len(level)
        overlaps = [iou[g][r] for r in candidates]
        threshold = statistics.mean(overlaps) + statistics.stdev(overlaps)
        for r in candidates:
            x, y = centers[r]
            if iou[g][r] >= threshold and left < x < right and top < y < bottom:
                claims[r][g] = iou[g][r]
    return [max(c, key=c.get) if c else len(boxes) for c in claims]


@pytest.mark.parametrize("topk", [1, 4, 9])
@pytest.mark.parametrize("seed", range(5))
def test_assignment_of_random_boxes_equals_the_loop(seed, topk):
    generator = torch.Generator().manual_seed(seed)
    anchors = grid((8, 12), (4, 6), (2, 3))
    corner = torch.rand(12, 2, generator=generator) * torch.tensor([70.0, 40])
    size = 3 + torch.rand(12, 2, generator=generator) ** 2 * 60
    boxes = torch.cat([corner, corner + size], dim=1).tolist()
    matched_gt, _ = assign(boxes, anchors, topk)
    assert matched_gt == assign_by_loop(boxes, anchors, topk)
    assert len(set(matched_gt)) > 3  # most instances have cells


def test_threshold_is_mean_plus_deviation():
    # Four cells at x = 0, 8, 16, 24, anchors of 16. The box is the second one's anchor.
    anchors, box = grid((1, 4)), [0.0, -8, 16, 8]
    # IoU 1/3, 1, 1/3, 0: mean 0.417, deviation of a sample 0.419.
    assert assign([box], anchors, 4) == ([1, 0, 1, 1], [1])
    # Between the two in the middle.
    box = [4.0, -8, 20, 8]
    iou = pairwise_iou(Boxes(torch.tensor([box])), Boxes.cat(anchors))[0]
    torch.testing.assert_close(iou, torch.tensor([1 / 7, 0.6, 0.6, 1 / 7]))
    # Mean 0.371, deviation 0.264: too much for 0.6. Of the two nearest the mean is 0.6.
    assert assign([box], anchors, 4) == ([1, 1, 1, 1], [1])
    assert assign([box], anchors, 2) == ([1, 0, 0, 1], [1])


def test_contested_cell_goes_to_the_larger_overlap():
    anchors = grid((1, 4))
    # Both qualify for the cells at 8 and 16, with IoU 0.6 and 0.47 (144 of 304).
    high, low = [4.0, -8, 20, 8], [4.0, -6, 20, 6]
    assert assign([high, low], anchors, 2) == ([2, 0, 0, 2], [1, 1])
    assert assign([low, high], anchors, 2) == ([2, 1, 1, 2], [1, 1])
    # They tie on the cell at 16: it goes to the first. The other keeps the cell at 24.
    wide = [12.0, -8, 28, 8]
    matched_gt, best = assign([high, wide], anchors, 2)
    assert matched_gt == [2, 0, 0, 1] and best == [1, 2]


def test_instance_smaller_than_a_stride_has_a_best_cell():
    anchors = grid((4, 4), (2, 2))
    around_a_center = [7.0, 7, 10, 10]
    matched_gt, best = assign([around_a_center], anchors, 9)
    assert [r for r, g in enumerate(matched_gt) if g == 0] == [5] == best  # row 1, column 1
    # No center inside: no cell is assigned, and the best cell is the nearest of those whose
    # anchors contain it, not the first.
    between_centers = [9.0, 9, 12, 12]
    matched_gt, best = assign([between_centers], anchors, 9)
    assert matched_gt == [1] * 20 and best == [5]


def test_image_without_instances():
    assert assign([], grid((4, 4), (2, 2)), 9) == ([0] * 20, [])


def test_fewer_cells_than_candidates():
    anchors = grid((1, 2), (1, 1))
    # The first cell's anchor; IoU 1, 1/3 and 1/4 of the coarse one: mean 0.528, deviation 0.410.
    assert assign([[-8.0, -8, 8, 8]], anchors, 9) == ([0, 1, 1], [0])
    assert assign([[-8.0, -8, 8, 8]], grid((1, 1)), 9) == ([0], [0])  # no deviation


def test_boxes_without_area_or_outside_are_not_assigned():
    anchors, box = grid((4, 4), (2, 2)), [2.0, 2, 20, 20]
    alone, _ = assign([box], anchors, 9)
    flat, outside = [8.0, 8, 8, 8], [200.0, 200, 240, 240]
    matched_gt, best = assign([box, flat, outside], anchors, 9)
    assert [g == 0 for g in matched_gt] == [g == 0 for g in alone]
    assert set(matched_gt) == {0, 3} and all(0 <= r < 20 for r in best)
