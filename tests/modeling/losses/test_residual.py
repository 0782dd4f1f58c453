"""Norm of a residual: equality with the formula, and gradients."""

import pytest
import torch

from aid.modeling.losses.functional import residual_norm


def random(*shape, grad=True):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=grad)


@pytest.fixture
def inputs():
    """Target, weights, bias and two products for 2 images, 3 channels and 5 positions."""
    torch.manual_seed(0)
    weights = (random(2, 1, 5, grad=False), random(2, 3, 1, grad=False))
    products = (random(2, 3, 4), random(2, 4, 5)), (random(2, 3, 1), random(2, 1, 5))
    return random(2, 3, 5, grad=False), weights, random(2, 3), *products


def test_norm_equals_the_formula(inputs):
    target, (by_position, by_channel), bias, (a, x), (b, y) = inputs
    residual = by_position * by_channel * (target - bias[..., None] - a @ x - b @ y)
    torch.testing.assert_close(residual_norm(*inputs), residual.flatten(1).norm(dim=1))


@pytest.mark.parametrize("images_with_a_bias", [1, 2])
def test_gradients_equal_finite_differences(inputs, images_with_a_bias):
    target, weights, bias, *products = inputs
    bias = bias[:images_with_a_bias].detach().requires_grad_()

    def norm(bias, a, x, b, y):
        return residual_norm(target, weights, bias, (a, x), (b, y))

    assert torch.autograd.gradcheck(norm, (bias, *products[0], *products[1]))


def test_only_trained_inputs_get_a_gradient(inputs):
    target, weights, bias, (a, x), (b, y) = inputs
    frozen = x.detach()
    residual_norm(target, weights, bias, (a, frozen), (b, y)).sum().backward()
    assert frozen.grad is None and all(z.grad is not None for z in (bias, a, b, y))


def test_zero_residual_has_zero_gradient():
    x = random(1, 2, 3)
    matrix = torch.eye(2, dtype=torch.float64)[None].requires_grad_()
    bias = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    norm = residual_norm(x.detach().clone(), (torch.ones(1, 1, 3),), bias, (matrix, x))
    norm.sum().backward()
    assert norm == 0
    assert all((z.grad == 0).all() for z in (x, matrix, bias))


def test_positions_of_weight_zero_have_zero_gradient():
    x = random(1, 2, 3)
    bias = torch.zeros(1, 2, dtype=torch.float64)
    matrix = torch.eye(2, dtype=torch.float64)[None]
    weight = torch.tensor([[[1.0, 0.0, 1.0]]], dtype=torch.float64)
    residual_norm(random(1, 2, 3, grad=False), (weight,), bias, (matrix, x)).sum().backward()
    assert (x.grad[..., 1] == 0).all() and (x.grad[..., 0] != 0).all()
