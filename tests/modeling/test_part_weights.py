"""Component weights: class and box weights from the matching component of the loss."""

import math

import pytest
import torch

from aid.modeling.families import PerInstanceLosses
from aid.modeling.weighting import (
    ConstantWeighting,
    ExponentialWeighting,
    TeacherMixing,
    TeacherStats,
    Weights,
)

LEVELS = ("p2", "p3")
# Three instances on two of three images.
BOXES = [torch.tensor([[0.0, 0, 16, 16], [24, 8, 40, 24]]), torch.tensor([[8.0, 0, 24, 16]])]
BOXES.append(torch.zeros(0, 4))
CLS, BOX, RPN = [1.0, 2.0, 3.0], [0.5, 0.25, 4.0], [7.0, 8.0, 9.0]
REST = [[0.5, 1.5], [0.25, 0.75], [0.1, 0.3]]


def losses(cls=CLS, box=BOX, rest=REST):
    """Losses of a two-stage teacher; the RPN components must have no influence."""
    components = {"rpn_cls": RPN, "rpn_box": RPN, "cls": cls, "box": box}
    background = {"rpn_cls": torch.full((3, 2), 5.0), "cls": torch.tensor(rest)}
    share = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.25, 0.75]])
    return PerInstanceLosses(
        LEVELS, {k: torch.tensor(v) for k, v in components.items()}, background, share
    )


def stats(**kwargs):
    return TeacherStats(losses(**kwargs), torch.tensor([2, 0, 0]))


def component_weights(alpha=1.0, given=None, **kwargs):
    rule = ExponentialWeighting(alpha=alpha, **kwargs)
    return mixed(rule, rule.component_weights(given or stats(), BOXES))


def mixed(rule, components):
    alone = Weights({}, torch.zeros(len(components.cls)), components=components)
    return TeacherMixing([rule])([alone])[0].components


def exp(*losses):
    return (-torch.tensor(losses)).exp()


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_each_component_has_its_own_weight_and_the_rpn_none():
    actual = component_weights(alpha=0.5)
    close(actual.cls, exp(0.5, 1.0, 1.5))
    close(actual.box, exp(0.25, 0.125, 2.0))


def test_coefficients_scale_each_component():
    actual = component_weights(coefficients={"cls": 2.0, "box": 0.0, "rpn_cls": 9.0})
    close(actual.cls, exp(2.0, 4.0, 6.0))
    assert (actual.box == 1).all()


@pytest.mark.parametrize("component, other", [("cls", "box"), ("box", "cls")])
def test_larger_component_lowers_only_its_own_weight(component, other):
    raised = {"cls": list(CLS), "box": list(BOX)}
    raised[component][1] += 1
    before, after = component_weights(), component_weights(given=stats(**raised))
    assert torch.equal(getattr(after, other), getattr(before, other))
    changed = getattr(after, component) != getattr(before, component)
    assert changed.tolist() == [False, True, False]
    assert getattr(after, component)[1] < getattr(before, component)[1]


def test_background_weight_of_each_image():
    mean = torch.tensor([(math.exp(-1) + math.exp(-2)) / 2, math.exp(-3), math.exp(-0.2)])
    close(component_weights().background, mean)
    close(component_weights(background="loss").background, exp(1.0, 0.5, 0.2))
    assert component_weights(background="one").background.tolist() == [1, 1, 1]


@pytest.mark.parametrize("granularity", ["level", "image"])
def test_level_and_image_granularity_share_one_weight_per_image(granularity):
    actual = component_weights(granularity=granularity)
    # The class mean includes the background as one more region; boxes have no background.
    close(actual.cls, exp(4 / 3, 4 / 3, 3.5 / 2))
    close(actual.background, exp(4 / 3, 3.5 / 2, 0.2))
    close(actual.box, exp(0.375, 0.375, 4.0))


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("granularity", ["instance", "level", "image"])
@pytest.mark.parametrize("background", ["mean", "loss", "one"])
def test_alpha_0_is_exactly_plain_distillation(granularity, background, normalize):
    rule = {"granularity": granularity, "background": background, "normalize": normalize}
    actual = component_weights(alpha=0.0, **rule)
    for x in (actual.cls, actual.box, actual.background):
        assert (x == 1).all()
    plain = ExponentialWeighting(alpha=1.0, granularity="none").component_weights(None, BOXES)
    assert torch.equal(plain.cls, actual.cls) and torch.equal(plain.box, actual.box)
    assert torch.equal(plain.background, actual.background)


def test_normalized_weights_have_mean_1():
    plain, actual = component_weights(), component_weights(normalize=True)
    close(actual.box, plain.box / plain.box.mean())
    mean = torch.cat([plain.cls, plain.background]).mean()
    close(actual.cls, plain.cls / mean)
    close(actual.background, plain.background / mean)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("normalize", [False, True])
def test_non_finite_component_has_weight_zero_and_leaves_the_other(bad, normalize):
    actual = component_weights(given=stats(cls=[1.0, bad, 3.0]), normalize=normalize)
    assert actual.cls[1] == 0 and actual.cls[0] > 0
    assert torch.equal(actual.box, component_weights(normalize=normalize).box)
    broken = stats(cls=[bad] * 3, box=[bad] * 3, rest=[[bad] * 2] * 3)
    for granularity in ("instance", "level", "image"):
        actual = component_weights(given=broken, granularity=granularity, normalize=normalize)
        assert all((x == 0).all() for x in (actual.cls, actual.box, actual.background))


@pytest.mark.parametrize("granularity", ["instance", "level", "image"])
@pytest.mark.parametrize("normalize", [False, True])
def test_batch_without_instances_has_background_weights_only(granularity, normalize):
    empty = PerInstanceLosses(
        LEVELS,
        {"cls": torch.zeros(0), "box": torch.zeros(0)},
        {"cls": torch.tensor([[0.5, 1.5], [2.0, 2.0]])},
        torch.zeros(0, 2),
    )
    rule = ExponentialWeighting(alpha=1.0, granularity=granularity, normalize=normalize)
    actual = mixed(rule, rule.component_weights(TeacherStats(empty), [torch.zeros(0, 4)] * 2))
    assert actual.cls.shape == actual.box.shape == (0,)
    expected = exp(1.0, 2.0)
    close(actual.background, expected / expected.mean() if normalize else expected)


def test_constant_weighting_is_equal_for_all_components():
    actual = ConstantWeighting(constant=0.25).component_weights(None, BOXES)
    assert actual.cls.tolist() == actual.box.tolist() == actual.background.tolist() == [0.25] * 3


@pytest.mark.parametrize("granularity", ["instance", "level", "image"])
def test_component_weights_are_permutation_equivariant(granularity):
    order = [1, 0, 2]
    actual = component_weights(granularity=granularity, normalize=True)
    given = stats(cls=[CLS[i] for i in order], box=[BOX[i] for i in order])
    permuted = component_weights(given=given, granularity=granularity, normalize=True)
    close(permuted.cls, actual.cls[order])
    close(permuted.box, actual.box[order])
    close(permuted.background, actual.background)
