"""MGD: values computed by hand, and where its random numbers come from."""

import numpy as np
import pytest
import torch
from torch import nn

from aid.modeling.losses import MGDLoss
from aid.utils.errors import AIDError

pytestmark = pytest.mark.core


def make_loss(masked_share=0.0, channels=2, scale="sum", copies=True):
    """The loss; with ``copies``, what it generates is the positive part of what it is given."""
    loss = MGDLoss(
        channels={"p2": (channels, channels)},
        masked_share=masked_share,
        weight=1.0,
        scale=scale,
        standardize=False,
    )
    for conv in (loss.generation["p2"][0], loss.generation["p2"][2]) if copies else ():
        nn.init.dirac_(conv.weight)
        nn.init.zeros_(conv.bias)
    return loss


def cost(loss, student, teacher, weight=None):
    weight = torch.ones_like(teacher[:, :1]) if weight is None else weight
    return loss({"p2": student}, {"p2": teacher}, {"p2": weight}, None)["loss_distill_mgd"]


def masks(loss, number=1):
    """The masks of so many steps: what is left of a student of ones."""
    found = []
    loss.generation["p2"].register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    for _ in range(number):
        cost(loss, torch.ones(2, 2, 20, 30), torch.zeros(2, 2, 20, 30))
    return found


def test_known_value():
    student = torch.tensor([[[[1.0, -2.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]]])
    teacher = torch.tensor([[[[1.0, 2.0], [0.0, 2.0]], [[0.0, 0.0], [0.0, 1.0]]]])
    weight = torch.tensor([[[[1.0, 1.0], [1.0, 0.5]]]])
    expected = 0 + 2**2 + 3**2 + 0.5 * (2**2 + 1**2)  # the ReLU takes the student's -2
    assert cost(make_loss(), student, teacher, weight).item() == pytest.approx(expected)
    found = cost(make_loss(scale="rms"), student, teacher, weight)
    assert found.item() == pytest.approx(expected / 8)
    # An image that agrees halves the average over the batch.
    same = torch.cat([student, teacher]), torch.cat([teacher, teacher])
    found = cost(make_loss(), *same, torch.cat([weight, weight]))
    assert found.item() == pytest.approx(expected / 2)


def test_equals_convolutions_written_out():
    torch.manual_seed(0)
    loss = make_loss(copies=False).double()
    student, teacher = torch.randn(2, 1, 2, 3, 4, dtype=torch.float64)
    first, _, second = loss.generation["p2"]

    def convolve(conv, x):
        kernel, bias = conv.weight.detach().numpy(), conv.bias.detach().numpy()
        padded, out = np.pad(x, ((0, 0), (1, 1), (1, 1))), np.zeros((2, 3, 4))
        for c, i, j in np.ndindex(out.shape):
            out[c, i, j] = (kernel[c] * padded[:, i : i + 3, j : j + 3]).sum() + bias[c]
        return out

    generated = convolve(second, np.maximum(convolve(first, student[0].numpy()), 0))
    expected = ((teacher[0].numpy() - generated) ** 2).sum()
    assert cost(loss, student, teacher).item() == pytest.approx(expected)


def test_a_share_of_positions_is_masked_in_all_channels():
    (found,) = masks(make_loss(0.65))
    assert set(found.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(found[:, 0], found[:, 1])
    assert not torch.equal(found[0], found[1])
    assert (found == 0).double().mean().item() == pytest.approx(0.65, abs=0.05)


def test_masks_follow_the_seed_and_leave_the_students_random_numbers_alone():
    torch.manual_seed(4)
    expected = torch.rand(1)
    torch.manual_seed(4)
    loss = make_loss(0.5)
    torch.manual_seed(4)
    first, second = masks(loss, 2)
    assert torch.equal(torch.rand(1), expected)
    assert not torch.equal(first, second)  # as in the micro-batches of an iteration
    torch.manual_seed(5)
    (third,) = masks(loss)
    assert not torch.equal(first, third)
    # A process that goes on at the second seed.
    again = make_loss(0.5)
    torch.manual_seed(5)
    assert torch.equal(masks(again)[0], third)


def test_a_constant_map_is_a_factor_under_the_same_masks():
    student, teacher = torch.randn(2, 1, 2, 6, 5)
    losses = [make_loss(0.5, copies=False) for _ in range(2)]
    losses[1].load_state_dict(losses[0].state_dict())
    one = cost(losses[0], student, teacher)
    third = cost(losses[1], student, teacher, torch.full((1, 1, 6, 5), 0.3))
    torch.testing.assert_close(third, 0.3 * one)


@pytest.mark.parametrize("share", [1.0, -0.1, float("nan")])
def test_a_share_that_is_none(share):
    with pytest.raises(AIDError, match=f"MASKED_SHARE is {share}: it must be at least 0, below 1"):
        make_loss(share)
