"""Localisation distillation: known values."""

import math

import pytest
import torch

from aid.modeling.losses import LocalisationLoss

pytestmark = pytest.mark.core

# Of 3 to 1 from 1 to 1.
DIVERGENCE = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
SURE, EVEN = [math.log(3), 0.0], [0.0, 0.0]


def loss(context, temperature=1.0, weight=1.0):
    module = LocalisationLoss(temperature=temperature, weight=weight)
    return module({}, {}, {}, context)["loss_distill_localisation"]


def edges(*samples):
    """The distributions of left, upper, right and lower edge of each sample."""
    return {"distributions": torch.tensor(samples)}


def test_known_value(make_context):
    student = edges([EVEN] * 4, [EVEN] * 4, [EVEN] * 4)
    # One edge of four differs on the first sample, all do on the others; the last one is
    # background.
    teacher = edges([SURE, EVEN, EVEN, EVEN], [SURE] * 4, [SURE] * 4)
    context = make_context(student, teacher, [0, 1, -1], [0, 1, 1], num_images=4)
    expected = (DIVERGENCE / 4 + DIVERGENCE) / 4
    assert loss(context, weight=2.0).item() == pytest.approx(2 * expected)


def test_a_temperature_divides_logits_and_multiplies_by_its_square(make_context):
    student = edges([EVEN] * 4)
    soft = make_context(student, edges([[10 * x for x in SURE]] * 4), [0], [0])
    hard = make_context(student, edges([SURE] * 4), [0], [0])
    torch.testing.assert_close(loss(soft, temperature=10.0), 100 * loss(hard))


def test_the_weight_of_boxes_counts(make_context):
    sides = edges([EVEN] * 4, [EVEN] * 4), edges([SURE] * 4, [SURE] * 4), [0, 1], [0, 0]
    found = loss(make_context(*sides, box=[0.5, 1.0], cls=[0.0, 0.0]))
    assert found.item() == pytest.approx(0.75 * DIVERGENCE)


def test_what_agrees_costs_nothing_and_what_is_not_finite_counts_for_nothing(make_context):
    student = {"distributions": torch.tensor([[EVEN] * 4] * 3, requires_grad=True)}
    bad = [[math.nan, 0.0], EVEN, EVEN, EVEN], [EVEN, [math.inf, 0.0], EVEN, EVEN]
    found = loss(make_context(student, edges([EVEN] * 4, *bad), [0, 1, 2], [0, 0, 0]))
    found.backward()
    assert found == 0 and (student["distributions"].grad == 0).all()


def test_no_sample_at_all(make_context):
    student = {"distributions": torch.zeros(0, 4, 17, requires_grad=True)}
    teacher = {"distributions": torch.zeros(0, 4, 17)}
    found = loss(make_context(student, teacher, [], [], num_images=2))
    found.backward()
    assert found == 0
