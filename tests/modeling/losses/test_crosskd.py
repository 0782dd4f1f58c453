"""CrossKD: known values, gradients and students trained with it."""

import math

import pytest
import torch

from aid.modeling.losses import CrossKDLoss

CLS, BOX = "loss_distill_cross_cls", "loss_distill_cross_box"
CONFIDENT, UNIFORM = [math.log(3), 0.0], [0.0, 0.0]
# Student score 1/2, teacher score 3/4.
FOCAL = 0.25 * math.log(2)
# Divergence of (3/4, 1/4) from (1/2, 1/2).
DIVERGENCE = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
SQUARE, SHIFTED = [0.0, 0, 2, 2], [1.0, 0, 3, 2]


@pytest.fixture
def make_cross(make_context):
    """Like make_context, with cross-head predictions in place of the student's."""

    def make(cross, *args, **kwargs):
        context = make_context(cross, *args, activation="sigmoid", **kwargs)
        predictions = context.predictions
        predictions.cross, predictions.student = predictions.student, None
        return context

    return make


def loss(context, cls_weight=1.0, box_weight=1.0):
    module = CrossKDLoss(num_convs=1, cls_weight=cls_weight, box_weight=box_weight, min_score=1.0)
    return module({}, {}, {}, context)


def both(logits, boxes):
    return {"logits": torch.tensor(logits), "boxes": torch.tensor(boxes)}


def test_known_values(make_cross):
    # Two samples of an instance and one of background, on two images of three.
    cross = both([UNIFORM] * 3, [SQUARE] * 3)
    teacher = both([CONFIDENT, UNIFORM, CONFIDENT], [SHIFTED, SQUARE, SHIFTED])
    actual = loss(make_cross(cross, teacher, [0, 0, -1], [0, 0, 1], num_images=3), 2.0, 3.0)
    assert actual[CLS].item() == pytest.approx(2 * (FOCAL / 2 + FOCAL) / 3)
    # Intersection 2, union 6, hull 6.
    assert actual[BOX].item() == pytest.approx(3 * (1 - 2 / 6) / 2 / 3)


def test_box_term_compares_distributions_if_present(make_cross):
    cross = {**both([UNIFORM], [SQUARE]), "distributions": torch.tensor([[UNIFORM] * 4])}
    sides = torch.tensor([[CONFIDENT, UNIFORM, UNIFORM, CONFIDENT]])
    teacher = {**both([UNIFORM], [SHIFTED]), "distributions": sides}
    actual = loss(make_cross(cross, teacher, [0], [0]))
    assert actual[BOX].item() == pytest.approx(DIVERGENCE / 2)


def test_weights_affect_only_their_sample_and_term(make_cross):
    cross, teacher = both([UNIFORM] * 2, [SQUARE] * 2), both([CONFIDENT] * 2, [SHIFTED] * 2)
    sides = cross, teacher, [0, 1], [0, 0]
    full = loss(make_cross(*sides))
    less_cls = loss(make_cross(*sides, cls=[1.0, 0.5]))
    less_box = loss(make_cross(*sides, box=[0.25, 1.0]))
    torch.testing.assert_close(less_cls[CLS], 0.75 * full[CLS])
    torch.testing.assert_close(less_box[BOX], 0.625 * full[BOX])
    assert torch.equal(less_cls[BOX], full[BOX]) and torch.equal(less_box[CLS], full[CLS])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_teacher_predictions_are_ignored(bad, make_cross):
    cross = {k: x.requires_grad_() for k, x in both([UNIFORM] * 2, [SQUARE] * 2).items()}
    teacher = both([CONFIDENT, [bad, 0.0]], [SHIFTED, [0.0, bad, 1, 1]])
    actual = loss(make_cross(cross, teacher, [0, 1], [0, 0]))
    assert actual[CLS].item() == pytest.approx(FOCAL / 2)
    assert actual[BOX].item() == pytest.approx((1 - 2 / 6) / 2)
    sum(actual.values()).backward()
    assert all(x.grad[0].abs().sum() > 0 and (x.grad[1] == 0).all() for x in cross.values())


def test_loss_is_zero_for_equal_predictions_or_no_samples(make_cross):
    cross = {k: x.requires_grad_() for k, x in both([CONFIDENT], [SQUARE]).items()}
    actual = loss(make_cross(cross, both([CONFIDENT], [SQUARE]), [0], [0]))
    sum(actual.values()).backward()
    assert actual[CLS] == actual[BOX] == 0 and all(x.grad.isfinite().all() for x in cross.values())
    cross = {"logits": torch.zeros(0, 2, requires_grad=True)}
    cross["boxes"] = torch.zeros(0, 4, requires_grad=True)
    actual = loss(make_cross(cross, {}, [], [], num_images=2))
    assert actual[CLS] == actual[BOX] == 0
    sum(actual.values()).backward()  # DDP needs the graph
