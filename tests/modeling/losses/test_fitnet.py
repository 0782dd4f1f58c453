"""FitNet: known values and adapters."""

import numpy as np
import pytest
import torch

from aid.modeling.losses import FitNetLoss

pytestmark = pytest.mark.core


def fitnet(loss, student, teacher, weight):
    actual = loss({"p2": student}, {"p2": teacher}, {"p2": weight}, None)
    return actual["loss_distill_fitnet"]


def test_known_value():
    loss = FitNetLoss(channels={"p2": (1, 1)}, weight=3.0, standardize=False)
    student = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    teacher = torch.tensor([[[[1.0, 0.0], [0.0, 8.0]]]])
    weight = torch.tensor([[[[1.0, 1.0], [0.5, 0.25]]]])
    expected = 3 * (0 + 1 * 2**2 + 0.5 * 3**2 + 0.25 * 4**2) / 4 / 2
    assert fitnet(loss, student, teacher, weight).item() == pytest.approx(expected)


def test_loss_with_an_adapter_equals_a_loop():
    generator = torch.Generator().manual_seed(0)
    student, teacher, weight = (
        torch.randn(2, c, 3, 4, generator=generator).double() for c in (2, 3, 1)
    )
    weight = weight.abs()
    loss = FitNetLoss(channels={"p2": (2, 3)}, weight=1.0, standardize=False).double()
    matrix = loss.adapters["p2"].weight.detach().numpy()[:, :, 0, 0]
    bias = loss.adapters["p2"].bias.detach().numpy()
    expected = 0.0
    for n, y, x in np.ndindex(2, 3, 4):
        difference = teacher[n, :, y, x].numpy() - matrix @ student[n, :, y, x].numpy() - bias
        expected += weight[n, 0, y, x].item() * (difference**2).sum()
    actual = fitnet(loss, student, teacher, weight)
    assert actual.item() == pytest.approx(expected / teacher.numel() / 2)


def test_equal_channels_need_no_adapter():
    assert not list(FitNetLoss(channels={"p2": (4, 4)}, weight=1.0).parameters())
    assert len(list(FitNetLoss(channels={"p2": (4, 6)}, weight=1.0).parameters())) == 2
