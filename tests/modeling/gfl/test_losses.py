"""GFL's losses and integral over distributions, against loops and closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, pairwise_iou
from fvcore.nn import giou_loss, sigmoid_focal_loss

from aid.modeling.boxes import elementwise_box_giou
from aid.modeling.detectors.gfl import IntegralTransform
from aid.modeling.detectors.gfl_losses import distribution_focal_losses, quality_focal_losses

pytestmark = pytest.mark.core


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_quality_focal_loss_equals_a_loop():
    torch.manual_seed(0)
    logits, classes = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    quality = torch.tensor([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    expected = []
    for row, c, q in zip(logits.tolist(), classes.tolist(), quality.tolist(), strict=True):
        total = 0
        for k, x in enumerate(row):
            y, p = (q if k == c else 0), sigmoid(x)
            total -= abs(y - p) ** 1.5 * ((1 - y) * math.log(1 - p) + y * math.log(p))
        expected.append(total)
    actual = quality_focal_losses(logits, classes, quality, beta=1.5)
    torch.testing.assert_close(actual, torch.tensor(expected))


@pytest.mark.parametrize("quality", [0.0, 1.0])
def test_quality_focal_loss_of_quality_0_or_1_is_the_focal_loss(quality):
    """The focal loss here has no alpha."""
    torch.manual_seed(0)
    logits, classes = torch.randn(20, 4), torch.randint(4, (20,))
    one_hot = quality * F.one_hot(classes, 4).float()
    focal = sigmoid_focal_loss(logits, one_hot, alpha=-1, gamma=2.0).sum(dim=1)
    actual = quality_focal_losses(logits, classes, torch.full((20,), quality), beta=2.0)
    torch.testing.assert_close(actual, focal)


def test_score_equal_to_quality_has_zero_gradient():
    quality = torch.tensor([0.3, 0.9])
    logits = torch.logit(quality)[:, None].requires_grad_()
    quality_focal_losses(logits, torch.zeros(2, dtype=torch.long), quality, 2.0).sum().backward()
    torch.testing.assert_close(logits.grad, torch.zeros(2, 1))


def test_known_values_of_distribution_focal_loss():
    # Bins 0 to 3 with probabilities 1/8, 1/8, 1/4, 1/2 on every side.
    logits = torch.tensor([0.125, 0.125, 0.25, 0.5]).log().repeat(4)[None]
    # 1.25: three quarters bin 1, one quarter bin 2. 2: bin 2. -1: as 0. 9: as 2.9.
    distances = torch.tensor([[1.25, 2.0, -1.0, 9.0]])
    sides = [0.75 * 3 + 0.25 * 2, 2, 3, 0.1 * 2 + 0.9 * 1]  # in units of log 2
    expected = torch.tensor([sum(sides) / 4 * math.log(2)])
    torch.testing.assert_close(distribution_focal_losses(logits, distances), expected)


def test_distribution_focal_loss_is_minimal_at_the_distance():
    transform, distances = IntegralTransform(16, 8.0), torch.tensor([[0.0, 3.3, 7.5, 14.9]])
    logits = torch.zeros(1, 68, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.3)
    for _ in range(200):
        optimizer.zero_grad()
        distribution_focal_losses(logits, distances).sum().backward()
        optimizer.step()
    torch.testing.assert_close(transform.distances(logits), distances, atol=0.05, rtol=0)


def test_distances_are_expectations():
    transform = IntegralTransform(4, 8.0)
    logits = torch.full((2, 4, 5), -1e4)
    logits[0, :, 0] = logits[0, :, 3] = 0  # half 0, half 3
    logits[0, 3] = 7.0  # all equal: the middle
    logits[1, range(4), range(4)] = 0
    expected = torch.tensor([[1.5, 1.5, 1.5, 2.0], [0, 1, 2, 3]])
    torch.testing.assert_close(transform.distances(logits.flatten(1)), expected)


def test_distances_are_computed_in_float32():
    torch.manual_seed(0)
    transform, logits = IntegralTransform(16, 8.0), torch.randn(50, 68).half()
    actual = transform.distances(logits)
    assert actual.dtype == torch.float32
    assert torch.equal(actual, transform.distances(logits.float()))


def test_known_boxes_around_the_center_of_a_cell():
    transform = IntegralTransform(4, anchor_scale=8.0)
    anchor = torch.tensor([[-32.0, 32, 96, 160]])  # center (32, 96), stride 16
    logits = torch.full((1, 4, 5), -1e4)
    logits[0, range(4), [1, 0, 2, 3]] = 0
    box = torch.tensor([[32.0 - 16, 96, 32 + 32, 96 + 48]])
    torch.testing.assert_close(transform.apply_deltas(logits.flatten(1), anchor), box)
    distances = transform.get_deltas(anchor, box)
    torch.testing.assert_close(distances, torch.tensor([[1.0, 0, 2, 3]]))


def test_iou_and_giou_equal_detectron2():
    torch.manual_seed(0)
    corner = torch.rand(2, 200, 2)
    boxes, targets = torch.cat([corner, corner + torch.rand(2, 200, 2)], dim=2) * 50
    iou, giou = elementwise_box_giou(boxes, targets)
    torch.testing.assert_close(iou, pairwise_iou(Boxes(boxes), Boxes(targets)).diagonal())
    torch.testing.assert_close(1 - giou, giou_loss(boxes, targets), atol=1e-5, rtol=1e-5)
    assert (giou < 0).any() and (iou > 0.5).any()


def test_iou_and_giou_of_points_are_finite():
    point, box = torch.tensor([[3.0, 3, 3, 3]]), torch.tensor([[0.0, 0, 4, 4]])
    for pair in ((point, point), (point, box), (box, point)):
        iou, giou = elementwise_box_giou(*pair)
        assert iou == 0 and giou.isfinite()
