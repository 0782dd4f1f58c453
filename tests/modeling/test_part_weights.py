"""Weights of classes and of boxes, each by its own part of the teacher's loss."""

import math

import pytest
import torch

from aid.modeling.families import PerInstanceLosses
from aid.modeling.weighting import (
    ClassWeighting,
    ConstantWeighting,
    ExponentialWeighting,
    RelativeWeighting,
    TeacherStats,
)

LEVELS = ("p2", "p3")
SIZES = {"p2": ((4, 6), 8), "p3": ((2, 3), 16)}
# Three instances on two of three images.
BOXES = [torch.tensor([[0.0, 0, 16, 16], [24, 8, 40, 24]]), torch.tensor([[8.0, 0, 24, 16]])]
BOXES.append(torch.zeros(0, 4))
CLS, BOX, RPN = [1.0, 2.0, 3.0], [0.5, 0.25, 4.0], [7.0, 8.0, 9.0]
REST = [[0.5, 1.5], [0.25, 0.75], [0.1, 0.3]]


def losses(cls=CLS, box=BOX, rest=REST):
    """A two-stage teacher's, of which the RPN's parts are not to count."""
    parts = {"rpn_cls": RPN, "rpn_box": RPN, "cls": cls, "box": box}
    background = {"rpn_cls": torch.full((3, 2), 5.0), "cls": torch.tensor(rest)}
    share = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.25, 0.75]])
    return PerInstanceLosses(
        LEVELS, {k: torch.tensor(v) for k, v in parts.items()}, background, share
    )


def stats(**kwargs):
    return TeacherStats(losses(**kwargs), torch.tensor([2, 0, 0]))


def component_weights(alpha=1.0, given=None, **kwargs):
    return ExponentialWeighting(alpha=alpha, **kwargs).component_weights(given or stats(), BOXES)


def exp(*losses):
    return (-torch.tensor(losses)).exp()


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_each_part_has_a_weight_of_its_own_and_the_rpn_none():
    found = component_weights(alpha=0.5)
    close(found.cls, exp(0.5, 1.0, 1.5))
    close(found.box, exp(0.25, 0.125, 2.0))


def test_coefficients_are_those_of_the_parts():
    found = component_weights(coefficients={"cls": 2.0, "box": 0.0, "rpn_cls": 9.0})
    close(found.cls, exp(2.0, 4.0, 6.0))
    assert (found.box == 1).all()


@pytest.mark.parametrize("part, other", [("cls", "box"), ("box", "cls")])
def test_a_larger_part_lowers_the_weight_of_that_part_of_that_instance_alone(part, other):
    raised = {"cls": list(CLS), "box": list(BOX)}
    raised[part][1] += 1
    before, after = component_weights(), component_weights(given=stats(**raised))
    assert torch.equal(getattr(after, other), getattr(before, other))
    changed = getattr(after, part) != getattr(before, part)
    assert changed.tolist() == [False, True, False]
    assert getattr(after, part)[1] < getattr(before, part)[1]


def test_the_background_of_an_image():
    mean = torch.tensor([(math.exp(-1) + math.exp(-2)) / 2, math.exp(-3), math.exp(-0.2)])
    close(component_weights().background, mean)
    close(component_weights(background="loss").background, exp(1.0, 0.5, 0.2))
    assert component_weights(background="one").background.tolist() == [1, 1, 1]


@pytest.mark.parametrize("granularity", ["level", "image"])
def test_one_weight_for_an_image(granularity):
    found = component_weights(granularity=granularity)
    # The classes' mean counts the background as one more region; boxes have no background.
    close(found.cls, exp(4 / 3, 4 / 3, 3.5 / 2))
    close(found.background, exp(4 / 3, 3.5 / 2, 0.2))
    close(found.box, exp(0.375, 0.375, 4.0))


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("granularity", ["instance", "level", "image"])
@pytest.mark.parametrize("background", ["mean", "loss", "one"])
def test_alpha_0_is_exactly_plain_distillation(granularity, background, normalize):
    rule = {"granularity": granularity, "background": background, "normalize": normalize}
    found = component_weights(alpha=0.0, **rule)
    for x in (found.cls, found.box, found.background):
        assert (x == 1).all()
    plain = ExponentialWeighting(alpha=1.0, granularity="none").component_weights(None, BOXES)
    assert torch.equal(plain.cls, found.cls) and torch.equal(plain.box, found.box)
    assert torch.equal(plain.background, found.background)


def test_normalized_weights():
    plain, found = component_weights(), component_weights(normalize=True)
    close(found.box, plain.box / plain.box.mean())
    mean = torch.cat([plain.cls, plain.background]).mean()
    close(found.cls, plain.cls / mean)
    close(found.background, plain.background / mean)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("normalize", [False, True])
def test_a_part_that_is_not_finite_weighs_nothing_and_leaves_the_other_alone(bad, normalize):
    found = component_weights(given=stats(cls=[1.0, bad, 3.0]), normalize=normalize)
    assert found.cls[1] == 0 and found.cls[0] > 0
    assert torch.equal(found.box, component_weights(normalize=normalize).box)
    broken = stats(cls=[bad] * 3, box=[bad] * 3, rest=[[bad] * 2] * 3)
    for granularity in ("instance", "level", "image"):
        found = component_weights(given=broken, granularity=granularity, normalize=normalize)
        assert all((x == 0).all() for x in (found.cls, found.box, found.background))


@pytest.mark.parametrize("granularity", ["instance", "level", "image"])
@pytest.mark.parametrize("normalize", [False, True])
def test_no_instance_at_all(granularity, normalize):
    empty = PerInstanceLosses(
        LEVELS,
        {"cls": torch.zeros(0), "box": torch.zeros(0)},
        {"cls": torch.tensor([[0.5, 1.5], [2.0, 2.0]])},
        torch.zeros(0, 2),
    )
    rule = ExponentialWeighting(alpha=1.0, granularity=granularity, normalize=normalize)
    found = rule.component_weights(TeacherStats(empty), [torch.zeros(0, 4)] * 2)
    assert found.cls.shape == found.box.shape == (0,)
    expected = exp(1.0, 2.0)
    close(found.background, expected / expected.mean() if normalize else expected)


def test_a_constant_is_one_for_all():
    found = ConstantWeighting(constant=0.25).component_weights(None, BOXES)
    assert found.cls.tolist() == found.box.tolist() == found.background.tolist() == [0.25] * 3


def test_a_distrusted_class_is_so_in_both_parts():
    found = ClassWeighting(distrusted=[1, 2]).component_weights(stats(), BOXES)
    assert found.cls.tolist() == found.box.tolist() == [0, 1, 1]


def test_relative_weights_of_parts_multiply_to_the_whole_and_are_learned_once():
    only = {"rpn_cls": 0.0, "rpn_box": 0.0}
    rule = RelativeWeighting(alpha=0.7, momentum=0.9, coefficients=only)
    whole = rule(stats(), BOXES, SIZES)
    memory = rule.sum_and_count.clone()
    close(memory, torch.tensor([sum(CLS) + sum(BOX), 3.0]))
    found = rule.component_weights(stats(), BOXES)
    close(found.cls * found.box, whole.instance)
    assert torch.equal(rule.sum_and_count, memory)


@pytest.mark.parametrize("granularity", ["instance", "level", "image"])
def test_the_order_of_instances_changes_nothing(granularity):
    order = [1, 0, 2]
    found = component_weights(granularity=granularity, normalize=True)
    given = stats(cls=[CLS[i] for i in order], box=[BOX[i] for i in order])
    again = component_weights(given=given, granularity=granularity, normalize=True)
    close(again.cls, found.cls[order])
    close(again.box, found.box[order])
    close(again.background, found.background)
