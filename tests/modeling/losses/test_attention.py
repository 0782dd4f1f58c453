"""Attention-guided loss: known values and gradients."""

import math

import pytest
import torch
from torch import nn

from aid.modeling.losses.attention import (
    AttentionGuidedLoss,
    _Means,
    channel_attention,
    spatial_attention,
)

pytestmark = pytest.mark.core

# The variant of the paper.
PAPER = {"standardize": False, "adapt_equal_widths": True}
NAMES = ["loss_distill_feature", "loss_distill_channel", "loss_distill_spatial"]


def identity_loss(temperature=0.5, channels=2, scale="sum"):
    """Attention-guided loss with identity adapters and weights of 1."""
    loss = AttentionGuidedLoss(
        channels={"p2": (channels, channels)},
        temperature=temperature,
        feature_weight=1.0,
        channel_weight=1.0,
        spatial_weight=1.0,
        scale=scale,
        **PAPER,
    )
    adapters = loss.adapters["p2"]
    for parameter in loss.parameters():
        nn.init.zeros_(parameter)
    with torch.no_grad():
        adapters.feature.weight[:, :, 0, 0] = torch.eye(channels)
        adapters.channel.weight.copy_(torch.eye(channels))
        adapters.spatial.weight[0, 0, 1, 1] = 1
    return loss


def run(loss, student, teacher, weight):
    return loss({"p2": student}, {"p2": teacher}, {"p2": weight}, None)


def test_known_values_of_attention():
    features = torch.tensor([[[[1.0, -3.0]], [[3.0, 1.0]]]])  # mean |F| is 2 everywhere
    torch.testing.assert_close(spatial_attention(features, 0.5), torch.ones(1, 1, 1, 2))
    torch.testing.assert_close(channel_attention(features, 0.5), torch.ones(1, 2, 1, 1))
    features = torch.tensor([[[[0.0, 2.0]], [[0.0, -4.0]]]])
    e = math.exp(3 / 0.5)
    expected = torch.tensor([[[[2 / (1 + e), 2 * e / (1 + e)]]]])
    torch.testing.assert_close(spatial_attention(features, 0.5), expected)
    e = math.exp((2 - 1) / 0.5)
    expected = torch.tensor([2 / (1 + e), 2 * e / (1 + e)]).view(1, 2, 1, 1)
    torch.testing.assert_close(channel_attention(features, 0.5), expected)


def test_known_losses_of_uniform_attention():
    # |F| is uniform over positions and channels on both sides, so that all masks are 1.
    teacher = torch.full((1, 2, 2, 2), 3.0)
    student = torch.full((1, 2, 2, 2), 1.0)
    actual = run(identity_loss(), student, teacher, torch.full((1, 1, 2, 2), 0.5))
    torch.testing.assert_close(actual[NAMES[0]], torch.tensor(0.5 * 2 * math.sqrt(8)))
    torch.testing.assert_close(actual[NAMES[1]], torch.tensor(0.5 * 2 * math.sqrt(2)))
    torch.testing.assert_close(actual[NAMES[2]], torch.tensor(0.5 * 2 * math.sqrt(4)))
    actual = run(identity_loss(scale="rms"), student, teacher, torch.full((1, 1, 2, 2), 0.5))
    assert [round(actual[name].item(), 6) for name in NAMES] == [1, 1, 1]


def test_feature_term_equals_the_formula():
    generator = torch.Generator().manual_seed(0)
    teacher, student = torch.randn(2, 1, 3, 2, 4, generator=generator).unbind()
    weight = torch.rand(1, 1, 2, 4, generator=generator)
    spatial = (spatial_attention(teacher, 0.5) + spatial_attention(student, 0.5)) / 2
    channel = (channel_attention(teacher, 0.5) + channel_attention(student, 0.5)) / 2
    expected = (weight**2 * spatial * channel * (teacher - student) ** 2).sum().sqrt()
    actual = run(identity_loss(channels=3), student, teacher, weight)
    torch.testing.assert_close(actual["loss_distill_feature"], expected)


def test_gradient_of_the_fused_means():
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    actual = _Means.apply(x)
    torch.testing.assert_close(actual, (x.mean(dim=(2, 3)), x.mean(dim=1, keepdim=True)))
    assert torch.autograd.gradcheck(_Means.apply, x)


def test_terms_of_means_equal_the_formula():
    """With adapters, between unequal widths."""
    torch.manual_seed(0)
    loss = AttentionGuidedLoss(
        channels={"p2": (4, 6)},
        temperature=0.5,
        feature_weight=1.0,
        channel_weight=1.0,
        spatial_weight=1.0,
        scale="sum",
        **PAPER,
    )
    student, teacher = torch.randn(1, 4, 5, 7), torch.randn(1, 6, 5, 7)
    weight, adapters = torch.rand(1, 1, 5, 7), loss.adapters["p2"]
    actual = run(loss, student, teacher, weight)
    channel = teacher.mean(dim=(2, 3)) - adapters.channel(student.mean(dim=(2, 3)))
    means = [x.mean(dim=1, keepdim=True) for x in (student, teacher)]
    spatial = weight * (means[1] - adapters.spatial(means[0]))
    expected = weight.mean() * channel.norm(), spatial.norm()
    torch.testing.assert_close((actual[NAMES[1]], actual[NAMES[2]]), expected)
