"""CWD: divergences computed by hand and by loops."""

import math

import numpy as np
import pytest
import torch

from aid.modeling.losses import CWDLoss
from aid.utils.errors import AIDError

pytestmark = pytest.mark.core


def cost(student, teacher, weight=None, temperature=1.0, loss_weight=1.0):
    weight = torch.ones_like(teacher[:, :1]) if weight is None else weight
    channels = {"p2": (teacher.shape[1],) * 2}
    loss = CWDLoss(channels=channels, temperature=temperature, weight=loss_weight)
    return loss({"p2": student}, {"p2": teacher}, {"p2": weight}, None)["loss_distill_cwd"].item()


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def test_known_value():
    # The teacher's channel is 3 to 1 to 1 to 1, the student's even.
    student, teacher = torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2)
    teacher[0, 0, 1, 0] = 2 * math.log(3)
    divergence = 1 / 2 * math.log(2) + 3 * 1 / 6 * math.log(4 / 6)
    expected = 10 * 2**2 / 2 * divergence  # the other channel agrees
    found = cost(student, teacher, temperature=2.0, loss_weight=10.0)
    assert found == pytest.approx(expected, rel=1e-5)


def test_equals_loops_over_images_and_channels():
    student, teacher, weight = random(2, 3, 2, 4), random(2, 3, 2, 4, seed=1), random(2, 1, 2, 4)
    weight = weight.abs()
    weight[0, 0, 1, 2] = 0
    expected = 0.0
    for n, c in np.ndindex(2, 3):
        w = weight[n, 0].numpy()
        s, t = (np.exp(x[n, c].numpy()[w > 0] / 0.5) for x in (student, teacher))
        s, t = s / s.sum(), t / t.sum()
        expected += (w[w > 0] * (t * np.log(t / s) - t + s)).sum()
    assert cost(student, teacher, weight, 0.5) == pytest.approx(expected * 0.5**2 / 3 / 2)


def test_a_place_of_weight_0_takes_nothing_from_the_others():
    student, teacher = random(1, 2, 2, 3), random(1, 2, 2, 3, seed=1)
    weight = torch.ones(1, 1, 2, 3, dtype=torch.float64)
    weight[..., 0] = 0
    found = cost(student, teacher, weight)
    assert found == pytest.approx(cost(student[..., 1:], teacher[..., 1:]))
    teacher[..., 0] = 1e4  # where it is wrong, and sure of it
    assert cost(student, teacher, weight) == pytest.approx(found)


def test_a_weight_counts_where_a_channel_has_a_peak_too():
    student, teacher, weight = (
        torch.zeros(1, 1, 2, 3),
        torch.zeros(1, 1, 2, 3),
        torch.ones(1, 1, 2, 3),
    )
    teacher[..., 1, 2] = 50
    whole = cost(student, teacher, weight)
    weight[..., 1, 2] = 0.1
    # What remains is what the student has in the other places, 5/6 of it.
    peak = math.log(6) - 1 + 1 / 6
    assert whole == pytest.approx(math.log(6))
    assert cost(student, teacher, weight) == pytest.approx(0.1 * peak + 5 / 6)


def test_is_never_negative():
    for seed in range(20):
        student, teacher = random(1, 2, 2, 3, seed=seed), random(1, 2, 2, 3, seed=seed + 1)
        assert cost(student, teacher, random(1, 1, 2, 3, seed=seed).abs()) > 0


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_that_is_not_positive(temperature):
    with pytest.raises(AIDError, match=f"CWD.TEMPERATURE is {temperature}: it must be above 0"):
        CWDLoss(channels={"p2": (2, 2)}, temperature=temperature, weight=1.0)
