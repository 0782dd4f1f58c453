"""Per-instance losses of an FCOS teacher against loops, training losses and known values."""

import copy
import math

import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from aid.modeling.families import per_instance_losses

pytestmark = pytest.mark.core

STRIDES = (8, 16, 32, 64, 128)


def predictions_of(model, batch):
    """Logits (R, K), boxes (R, 4) and centerness logits (R,) of the only image, and its points."""
    features = model.backbone(model.preprocess_image(batch).tensor)
    features = [features[level] for level in model.head_in_features]
    logits, deltas, centerness = model.head(features)
    points = [
        ((x + 0.5) * stride, (y + 0.5) * stride, level)
        for level, stride in enumerate(STRIDES)
        for y in range(features[level].shape[2])
        for x in range(features[level].shape[3])
    ]
    logits, deltas, centerness = (
        torch.cat([x[0].flatten(1).T for x in component])
        for component in (logits, deltas, centerness)
    )
    boxes = []
    for (x, y, level), (left, top, right, bottom) in zip(
        points, deltas.relu().tolist(), strict=True
    ):
        s = STRIDES[level]
        boxes.append((x - left * s, y - top * s, x + right * s, y + bottom * s))
    return logits.tolist(), boxes, centerness[:, 0].tolist(), points


def losses_of(model, batch):
    images = model.preprocess_image(batch)
    features = model.backbone(images.tensor)
    return per_instance_losses(model, images, features, [x["instances"] for x in batch])


def with_boxes(make_batch, boxes, classes=None):
    (sample,) = make_batch((1,))
    instances = Instances((64, 96))
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
    instances.gt_classes = torch.tensor(classes or [0] * len(boxes))
    return [{**sample, "instances": instances}]


@pytest.fixture
def model(tiny_model):
    """FCOS with predictions that differ between points."""
    model = tiny_model("fcos")
    for component in (model.head.cls_score, model.head.bbox_pred, model.head.ctrness):
        nn.init.normal_(component.weight, std=0.5)
    nn.init.ones_(model.head.bbox_pred.bias)
    return model


# --- reference by loops, after arXiv 1904.01355 and, for the radius, 2006.09214


def distances(point, box):
    return point[0] - box[0], point[1] - box[1], box[2] - point[0], box[3] - point[1]


def assigned_box(point, boxes):
    """Index of the smallest box that the point is assigned to, or None."""
    matched_gt, smallest = None, math.inf
    s = STRIDES[point[2]]
    low = 0 if point[2] == 0 else 4 * s
    high = math.inf if point[2] == len(STRIDES) - 1 else 8 * s
    for i, box in enumerate(boxes):
        sides = distances(point, box)
        off = max(abs(point[0] - (box[0] + box[2]) / 2), abs(point[1] - (box[1] + box[3]) / 2))
        area = (box[2] - box[0]) * (box[3] - box[1])
        if off < 1.5 * s and min(sides) > 0 and low < max(sides) < high and area < smallest:
            matched_gt, smallest = i, area
    return matched_gt


def focal(logits, label):
    total = 0.0
    for k, logit in enumerate(logits):
        p = 1 / (1 + math.exp(-logit))
        if k == label:
            total -= 0.25 * (1 - p) ** 2 * math.log(p)
        else:
            total -= 0.75 * p**2 * math.log(1 - p)
    return total


def giou(a, b):
    def area(x):
        return max(x[2] - x[0], 0) * max(x[3] - x[1], 0)

    common = area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    hull = area((min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])))
    union = area(a) + area(b) - common
    return 1 - common / union + (hull - union) / hull


def centerness(logit, point, box):
    left, top, right, bottom = distances(point, box)
    across, down = min(left, right) / max(left, right), min(top, bottom) / max(top, bottom)
    target, p = math.sqrt(across * down), 1 / (1 + math.exp(-logit))
    return -target * math.log(p) - (1 - target) * math.log(1 - p)


def mean(values):
    return sum(values) / len(values)


@torch.no_grad()
def test_losses_equal_a_reference_by_loops(model, make_batch):
    # One large, one small inside it, one at the border; points of P3 and P4 are positive.
    boxes = [[2.0, 1, 94, 62], [30, 20, 58, 44], [60, 3, 96, 40], [5, 40, 21, 63]]
    classes = [1, 0, 2, 0]
    batch = with_boxes(make_batch, boxes, classes)
    actual = losses_of(model, batch)
    logits, predicted, centers, points = predictions_of(model, batch)
    assigned = [assigned_box(point, boxes) for point in points]
    assert set(assigned) == {None, 0, 1, 2, 3}
    for i, (box, label) in enumerate(zip(boxes, classes, strict=True)):
        positives_of = [r for r, matched_gt in enumerate(assigned) if matched_gt == i]
        expected = {
            "cls": mean([focal(logits[r], label) for r in positives_of]),
            "box": mean([giou(predicted[r], box) for r in positives_of]),
            "ctr": mean([centerness(centers[r], points[r], box) for r in positives_of]),
        }
        for name, value in expected.items():
            assert actual.components[name][i].item() == pytest.approx(value, rel=1e-4), name
        for level in range(5):
            share = mean([points[r][2] == level for r in positives_of])
            assert actual.level_share[i, level].item() == pytest.approx(share)
    for level in range(5):
        negatives = [
            r for r, point in enumerate(points) if point[2] == level and assigned[r] is None
        ]
        expected = mean([focal(logits[r], None) for r in negatives]) if negatives else 0
        assert actual.background["cls"][0, level].item() == pytest.approx(expected, rel=1e-4)


# --- against training losses and known values


def test_sum_over_points_equals_the_training_loss_of_fcos(model, make_batch):
    batch = make_batch((1,))
    losses = losses_of(model, batch)
    with EventStorage() as storage, torch.no_grad():
        model.train()
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.eval()
        trained_on = model(copy.deepcopy(batch))
    positives = storage.latest()["num_pos_anchors"][0]
    assert positives > 0
    for component, name in (("box", "loss_fcos_loc"), ("ctr", "loss_fcos_ctr")):
        torch.testing.assert_close(
            losses.components[component][0] * positives, trained_on[name] * model.loss_normalizer
        )


def test_known_losses_of_a_zero_initialized_fcos(tiny_model, make_batch):
    model = tiny_model("fcos")
    for parameter in model.head.parameters():
        nn.init.zeros_(parameter)
    losses = losses_of(model, make_batch())
    # Focal loss at p = 1/2, gamma 2, alpha 1/4: one positive class and two negative ones.
    positive, negative = 0.25 * 0.25 * math.log(2), 0.75 * 0.25 * math.log(2)
    torch.testing.assert_close(losses.components["cls"], torch.full((5,), positive + 2 * negative))
    torch.testing.assert_close(losses.background["cls"], torch.full((2, 5), 3 * negative))
    # A point is a box of no size: IoU 0, and the target is the hull.
    torch.testing.assert_close(losses.components["box"], torch.ones(5))
    torch.testing.assert_close(losses.components["ctr"], torch.full((5,), math.log(2)))


@pytest.mark.parametrize(
    "boxes, nearest",
    [
        # Between four points of P3, which are 4 pixels off the multiples of 8; nearest is (36, 20).
        ([[33.0, 17, 34.5, 19]], (36, 20, 0)),
        # Every candidate point of the first box belongs to the smaller second one.
        ([[30.0, 14, 58, 42], [32, 16, 56, 40]], (44, 28, 0)),
        # 148 pixels long, so on P4 with cells of 16 pixels, and too thin to contain a point.
        ([[-44.0, 25, 104, 26]], (24, 24, 1)),
    ],
)
@torch.no_grad()
def test_instance_without_positive_points_uses_the_nearest(boxes, nearest, model, make_batch):
    batch = with_boxes(make_batch, boxes)
    logits, predicted, _, points = predictions_of(model, batch)
    assert all(assigned_box(point, boxes) != 0 for point in points)
    losses = losses_of(model, batch)
    r = points.index(nearest)
    assert losses.components["cls"][0].item() == pytest.approx(focal(logits[r], 0), rel=1e-4)
    assert losses.components["box"][0].item() == pytest.approx(
        giou(predicted[r], boxes[0]), rel=1e-4
    )
    assert losses.components["ctr"][0].isfinite()
    assert losses.level_share[0].tolist() == [float(i == nearest[2]) for i in range(5)]


@torch.no_grad()
def test_nan_boxes_give_non_finite_box_losses(model, make_batch):
    """Non-finite losses lead to weight 0 rather than an error."""
    nn.init.constant_(model.head.bbox_pred.bias, torch.nan)
    losses = losses_of(model, make_batch())
    assert not losses.components["box"].isfinite().any()
    assert losses.components["cls"].isfinite().all()
