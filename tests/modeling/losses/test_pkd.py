"""PKD: equality with Pearson's correlation, and constant features."""

import numpy as np
import pytest
import torch

from aid.modeling.losses import PKDLoss

pytestmark = pytest.mark.core


def pkd(student, teacher, weight=None, loss_weight=1.0):
    weight = torch.ones_like(teacher[:, :1]) if weight is None else weight
    loss = PKDLoss(channels={"p2": (teacher.shape[1],) * 2}, weight=loss_weight)
    return loss({"p2": student}, {"p2": teacher}, {"p2": weight}, None)["loss_distill_pkd"]


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def test_loss_is_1_minus_the_mean_correlation():
    student, teacher = random(2, 3, 4, 5), random(2, 3, 4, 5, seed=1)
    correlations = [
        np.corrcoef(student[n, c].flatten(), teacher[n, c].flatten())[0, 1]
        for n, c in np.ndindex(2, 3)
    ]
    actual = pkd(student, teacher, loss_weight=6.0)
    assert actual.item() == pytest.approx(6 * np.mean(1 - np.array(correlations)), rel=1e-5)


def test_weighted_loss_is_1_minus_the_weighted_correlation():
    student, teacher, weight = random(1, 1, 3, 4), random(1, 1, 3, 4, seed=1), random(1, 1, 3, 4)
    weight = weight.abs()
    both = np.stack([student.flatten(), teacher.flatten()])
    covariance = np.cov(both, aweights=weight.flatten().numpy(), ddof=0)
    correlation = covariance[0, 1] / (covariance[0, 0] * covariance[1, 1]) ** 0.5
    expected = weight.mean().item() * (1 - correlation)
    assert pkd(student, teacher, weight).item() == pytest.approx(expected, rel=1e-5)


def test_loss_is_invariant_to_scale_and_offset():
    student, teacher = random(2, 3, 4, 5), random(2, 3, 4, 5, seed=1)
    expected = pkd(student, teacher)
    torch.testing.assert_close(pkd(50 * student - 7, teacher), expected, rtol=1e-5, atol=0)
    assert pkd(3 * teacher + 2, teacher) < 1e-6
    assert pkd(-teacher, teacher).item() == pytest.approx(2, rel=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (3, 4)])
@pytest.mark.parametrize("value", [0.0, 1000.0])
def test_constant_features_have_finite_loss_and_gradients(size, value):
    constant = torch.full((1, 2, *size), value)
    student = constant.clone().requires_grad_()
    actual = pkd(student, constant)
    assert actual == 0
    actual.backward()
    assert (student.grad == 0).all()
    student = constant.clone().requires_grad_()
    actual = pkd(student, random(1, 2, *size).float())
    # Half the variance of the standardized teacher; 0 at a single position.
    assert actual.item() == pytest.approx(0.0 if size == (1, 1) else 0.5, abs=1e-2)
    actual.backward()
    assert student.grad.isfinite().all()
