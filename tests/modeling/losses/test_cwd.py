"""CWD: known divergences, a reference by loops and weights."""

import math

import numpy as np
import pytest
import torch

from aid.modeling.losses import CWDLoss

pytestmark = pytest.mark.core


def cwd(student, teacher, weight=None, temperature=1.0, loss_weight=1.0):
    weight = torch.ones_like(teacher[:, :1]) if weight is None else weight
    channels = {"p2": (teacher.shape[1],) * 2}
    loss = CWDLoss(channels=channels, temperature=temperature, weight=loss_weight)
    return loss({"p2": student}, {"p2": teacher}, {"p2": weight}, None)["loss_distill_cwd"].item()


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def test_known_value():
    # The teacher's channel is 3 : 1 : 1 : 1, the student's uniform.
    student, teacher = torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2)
    teacher[0, 0, 1, 0] = 2 * math.log(3)
    divergence = 1 / 2 * math.log(2) + 3 * 1 / 6 * math.log(4 / 6)
    expected = 10 * 2**2 / 2 * divergence  # the other channel agrees
    actual = cwd(student, teacher, temperature=2.0, loss_weight=10.0)
    assert actual == pytest.approx(expected, rel=1e-5)


def test_loss_equals_loops_over_images_and_channels():
    student, teacher, weight = random(2, 3, 2, 4), random(2, 3, 2, 4, seed=1), random(2, 1, 2, 4)
    weight = weight.abs()
    weight[0, 0, 1, 2] = 0
    expected = 0.0
    for n, c in np.ndindex(2, 3):
        w = weight[n, 0].numpy()
        s, t = (np.exp(x[n, c].numpy()[w > 0] / 0.5) for x in (student, teacher))
        s, t = s / s.sum(), t / t.sum()
        expected += (w[w > 0] * (t * np.log(t / s) - t + s)).sum()
    assert cwd(student, teacher, weight, 0.5) == pytest.approx(expected * 0.5**2 / 3 / 2)


def test_weight_scales_the_peak_of_a_channel():
    student, teacher, weight = (
        torch.zeros(1, 1, 2, 3),
        torch.zeros(1, 1, 2, 3),
        torch.ones(1, 1, 2, 3),
    )
    teacher[..., 1, 2] = 50
    full = cwd(student, teacher, weight)
    weight[..., 1, 2] = 0.1
    # The other positions hold 5/6 of the student's distribution.
    peak = math.log(6) - 1 + 1 / 6
    assert full == pytest.approx(math.log(6))
    assert cwd(student, teacher, weight) == pytest.approx(0.1 * peak + 5 / 6)
