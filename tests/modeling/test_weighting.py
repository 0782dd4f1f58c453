"""Weighting rules: known values, granularities and non-finite losses."""

import math

import pytest
import torch

from aid.config import load_config
from aid.modeling.families import PerInstanceLosses
from aid.modeling.weighting import (
    ConstantWeighting,
    ExponentialWeighting,
    TeacherMixing,
    TeacherStats,
    build_weighting,
)
from aid.utils.errors import AIDError

pytestmark = pytest.mark.core

LEVELS = {"p2": ((4, 6), 8), "p3": ((2, 3), 16)}
BOXES = [torch.tensor([[0.0, 0, 16, 16], [24, 8, 40, 24]]), torch.tensor([[8.0, 0, 24, 16]])]


def losses(instance, background, components=("cls",)):
    """Losses of 3 instances on 2 images and 2 levels, all in one component."""
    return PerInstanceLosses(
        levels=("p2", "p3"),
        components={components[0]: torch.tensor(instance)},
        background={"cls": torch.tensor(background)},
        level_share=torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.25, 0.75]]),
    )


def maps(instance, rest, boxes=BOXES, alpha=1.0, **kwargs):
    stats = TeacherStats(losses(instance, rest))
    rule = ExponentialWeighting(alpha=alpha, **kwargs)
    return TeacherMixing([rule])([rule(stats, boxes, LEVELS)])[0]


def test_instance_weight_is_exp_of_minus_alpha_times_loss():
    actual = maps([1.0, 2.0, 3.0], [[0.0, 0.0], [0.0, 0.0]], alpha=0.5)
    torch.testing.assert_close(actual.instance, torch.tensor([-0.5, -1.0, -1.5]).exp())
    assert actual.maps["p2"][0, 0, 0, 0] == actual.instance[0]
    assert actual.maps["p2"][0, 0, 1, 3] == actual.instance[1]
    assert actual.maps["p2"].shape == (2, 1, 4, 6) and actual.maps["p3"].shape == (2, 1, 2, 3)


def test_level_weights_are_means_over_instances_and_background():
    actual = maps([1.0, 2.0, 3.0], [[0.5, 4.0], [0.0, 1.0]], granularity="level")
    first = math.exp(-(1.0 * 1 + 0.5 * 2 + 0.5) / 2.5)  # shares 1 and 1/2, and the background
    second = math.exp(-(0.75 * 3 + 1.0) / 1.75)
    torch.testing.assert_close(actual.maps["p2"][0, 0], torch.full((4, 6), first))
    torch.testing.assert_close(actual.maps["p3"][1, 0], torch.full((2, 3), second))


def test_image_weights_are_means_over_instances_and_background():
    actual = maps([1.0, 2.0, 3.0], [[0.5, 1.5], [0.0, 1.0]], granularity="image")
    expected = torch.tensor([math.exp(-(1 + 2 + 1.0) / 3), math.exp(-(3 + 0.5) / 2)])
    for level in LEVELS:
        torch.testing.assert_close(actual.maps[level][:, 0, 0, 0], expected)


def test_background_weights_of_each_mode():
    d, b = [1.0, 2.0, 3.0], [[0.5, 1.0], [0.25, 0.75]]
    corner = {
        name: maps(d, b, background=name).maps["p2"][:, 0, 3, 0] for name in ("mean", "loss", "one")
    }
    mean = torch.tensor([(math.exp(-1) + math.exp(-2)) / 2, math.exp(-3)])
    torch.testing.assert_close(corner["mean"], mean)
    torch.testing.assert_close(corner["loss"], torch.tensor([-0.5, -0.25]).exp())
    assert corner["one"].tolist() == [1, 1]


def test_image_without_instances_uses_the_background_loss():
    empty = PerInstanceLosses(
        ("p2", "p3"),
        {"cls": torch.zeros(0)},
        {"cls": torch.tensor([[0.5, 1.0]])},
        torch.zeros(0, 2),
    )
    for granularity in ("instance", "level", "image"):
        rule = ExponentialWeighting(alpha=1.0, granularity=granularity)
        actual = rule(TeacherStats(empty), [torch.zeros(0, 4)], LEVELS)
        level = torch.tensor(0.75 if granularity == "image" else 0.5)
        torch.testing.assert_close(actual.maps["p2"], (-level).exp().expand(1, 1, 4, 6))
        assert actual.instance.shape == (0,)


def test_non_finite_loss_has_weight_zero_and_no_influence():
    for bad in (math.nan, math.inf):
        actual = maps([1.0, bad, 3.0], [[0.5, 1.0], [0.25, 0.75]])
        clean = maps([1.0, 2.0, 3.0], [[0.5, 1.0], [0.25, 0.75]])
        assert actual.instance[1] == 0 and actual.maps["p2"][0, 0, 1, 3] == 0
        assert actual.instance[0] == clean.instance[0]
        assert actual.maps["p2"][0, 0, 3, 0] == actual.instance[0]  # the mean of the finite ones
        assert torch.equal(actual.maps["p2"][1], clean.maps["p2"][1])
        level = maps([1.0, bad, 3.0], [[0.5, bad], [0.25, 0.75]], granularity="level")
        torch.testing.assert_close(level.maps["p2"][0, 0, 0, 0], torch.tensor(-0.75).exp())
        assert level.maps["p3"][0, 0, 0, 0] == 0  # no finite loss remains


def test_normalized_maps_have_mean_1_and_keep_their_proportions():
    plain = maps([1.0, 2.0, 3.0], [[0.5, 1.0], [0.25, 0.75]])
    actual = maps([1.0, 2.0, 3.0], [[0.5, 1.0], [0.25, 0.75]], normalize=True)
    for level in LEVELS:
        torch.testing.assert_close(actual.maps[level].mean(), torch.tensor(1.0))
        ratio = actual.maps[level] / plain.maps[level]
        torch.testing.assert_close(ratio, ratio[:1, :1, :1, :1].expand_as(ratio))
    invalid = maps([math.nan] * 3, [[math.nan] * 2] * 2, normalize=True)
    assert all((x == 0).all() for x in invalid.maps.values())


def test_coefficients_scale_the_components():
    both = losses([1.0, 2.0, 3.0], [[0.0, 0.0]] * 2)
    both.components["box"] = torch.tensor([10.0, 10.0, 10.0])
    rule = ExponentialWeighting(alpha=1.0, coefficients={"cls": 2.0, "box": 0.0})
    assert rule(TeacherStats(both), BOXES, LEVELS).loss.tolist() == [2, 4, 6]


def test_plain_distillation_has_weight_1_everywhere():
    plain = ExponentialWeighting(alpha=0.1, granularity="none")(None, BOXES, LEVELS)
    assert all((x == 1).all() for x in plain.maps.values())


def test_constant_weighting_is_constant_everywhere():
    actual = ConstantWeighting(constant=0.25)(None, BOXES, LEVELS)
    assert actual.instance is None and not ConstantWeighting(constant=0.25).requires_stats
    assert all((x == 0.25).all() for x in actual.maps.values())


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("AID.GRANULARITY", "pixel", "AID.GRANULARITY: 'pixel' is unknown.*instance"),
        ("AID.BACKGROUND", "zero", "AID.BACKGROUND: 'zero' is unknown.*mean"),
        ("AID.WEIGHTING", "Linear", "AID.WEIGHTING: 'Linear' is unknown.*ExponentialWeighting"),
        (
            "AID.WEIGHTING",
            "ConstWeighting",
            r"unknown \(did you mean ConstantWeighting\?\)",
        ),
        ("AID.ALPHA", -0.1, "AID.ALPHA is -0.1"),
        (("AID.WEIGHTING", "ConstantWeighting", "AID.CONSTANT"), -1.0, "AID.CONSTANT is -1"),
        ("AID.ALPHA", math.nan, "AID.ALPHA is nan"),
        ("AID.ALPHA", math.inf, "AID.ALPHA is inf"),
    ],
)
def test_invalid_settings_are_refused(key, value, message, repository):
    keys = key if isinstance(key, tuple) else (key,)
    cfg = load_config(f"{repository}/configs/Base-RetinaNet.yaml", [*keys, value])
    with pytest.raises(AIDError, match=message):
        build_weighting(cfg)
