"""Localization distillation: known values, weights and non-finite input."""

import math

import pytest
import torch

from aid.modeling.losses import LocalisationLoss

pytestmark = pytest.mark.core

# Divergence of (3/4, 1/4) from (1/2, 1/2).
DIVERGENCE = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
CONFIDENT, UNIFORM = [math.log(3), 0.0], [0.0, 0.0]


def loss(context, temperature=1.0, weight=1.0):
    module = LocalisationLoss(temperature=temperature, weight=weight)
    return module({}, {}, {}, context)["loss_distill_localisation"]


def edges(*samples):
    """Distributions of the left, upper, right and lower edge of each sample."""
    return {"distributions": torch.tensor(samples)}


def test_known_value(make_context):
    student = edges([UNIFORM] * 4, [UNIFORM] * 4, [UNIFORM] * 4)
    # One of four edges differs on the first sample, all on the others; the last is background.
    teacher = edges([CONFIDENT, UNIFORM, UNIFORM, UNIFORM], [CONFIDENT] * 4, [CONFIDENT] * 4)
    context = make_context(student, teacher, [0, 1, -1], [0, 1, 1], num_images=4)
    expected = (DIVERGENCE / 4 + DIVERGENCE) / 4
    assert loss(context, weight=2.0).item() == pytest.approx(2 * expected)


def test_temperature_divides_logits_and_scales_by_its_square(make_context):
    student = edges([UNIFORM] * 4)
    soft = make_context(student, edges([[10 * x for x in CONFIDENT]] * 4), [0], [0])
    hard = make_context(student, edges([CONFIDENT] * 4), [0], [0])
    torch.testing.assert_close(loss(soft, temperature=10.0), 100 * loss(hard))


def test_box_weights_scale_the_loss(make_context):
    sides = (
        edges([UNIFORM] * 4, [UNIFORM] * 4),
        edges([CONFIDENT] * 4, [CONFIDENT] * 4),
        [0, 1],
        [0, 0],
    )
    actual = loss(make_context(*sides, box=[0.5, 1.0], cls=[0.0, 0.0]))
    assert actual.item() == pytest.approx(0.75 * DIVERGENCE)


def test_equal_or_non_finite_distributions_have_zero_loss(make_context):
    student = {"distributions": torch.tensor([[UNIFORM] * 4] * 3, requires_grad=True)}
    bad = [[math.nan, 0.0], UNIFORM, UNIFORM, UNIFORM], [UNIFORM, [math.inf, 0.0], UNIFORM, UNIFORM]
    actual = loss(make_context(student, edges([UNIFORM] * 4, *bad), [0, 1, 2], [0, 0, 0]))
    actual.backward()
    assert actual == 0 and (student["distributions"].grad == 0).all()


def test_loss_without_samples_is_zero(make_context):
    student = {"distributions": torch.zeros(0, 4, 17, requires_grad=True)}
    teacher = {"distributions": torch.zeros(0, 4, 17)}
    actual = loss(make_context(student, teacher, [], [], num_images=2))
    actual.backward()
    assert actual == 0
