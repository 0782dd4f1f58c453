"""MGD: known values and random masks."""

import numpy as np
import pytest
import torch
from torch import nn

from aid.modeling.losses import MGDLoss
from aid.utils.errors import AIDError

pytestmark = pytest.mark.core


def make_loss(masked_share=0.0, channels=2, scale="sum", copies=True):
    """MGD loss; with ``copies``, the generated features are the ReLU of the input."""
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


def mgd(loss, student, teacher, weight=None):
    weight = torch.ones_like(teacher[:, :1]) if weight is None else weight
    return loss({"p2": student}, {"p2": teacher}, {"p2": weight}, None)["loss_distill_mgd"]


def masks(loss, number=1):
    """Masks of ``number`` steps: the masked features of a student of ones."""
    actual = []
    loss.generation["p2"].register_forward_pre_hook(lambda _, inputs: actual.append(inputs[0]))
    for _ in range(number):
        mgd(loss, torch.ones(2, 2, 20, 30), torch.zeros(2, 2, 20, 30))
    return actual


def test_known_value():
    student = torch.tensor([[[[1.0, -2.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]]])
    teacher = torch.tensor([[[[1.0, 2.0], [0.0, 2.0]], [[0.0, 0.0], [0.0, 1.0]]]])
    weight = torch.tensor([[[[1.0, 1.0], [1.0, 0.5]]]])
    expected = 0 + 2**2 + 3**2 + 0.5 * (2**2 + 1**2)  # the ReLU clips the student's -2
    assert mgd(make_loss(), student, teacher, weight).item() == pytest.approx(expected)
    actual = mgd(make_loss(scale="rms"), student, teacher, weight)
    assert actual.item() == pytest.approx(expected / 8)
    # An image of equal features halves the mean over the batch.
    same = torch.cat([student, teacher]), torch.cat([teacher, teacher])
    actual = mgd(make_loss(), *same, torch.cat([weight, weight]))
    assert actual.item() == pytest.approx(expected / 2)


def test_loss_equals_a_reference_by_loops():
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
    assert mgd(loss, student, teacher).item() == pytest.approx(expected)


def test_masked_share_of_positions_in_all_channels():
    (actual,) = masks(make_loss(0.65))
    assert set(actual.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(actual[:, 0], actual[:, 1])
    assert not torch.equal(actual[0], actual[1])
    assert (actual == 0).double().mean().item() == pytest.approx(0.65, abs=0.05)


def test_masks_follow_the_seed_and_preserve_the_random_state():
    torch.manual_seed(4)
    expected = torch.rand(1)
    torch.manual_seed(4)
    loss = make_loss(0.5)
    torch.manual_seed(4)
    first, second = masks(loss, 2)
    assert torch.equal(torch.rand(1), expected)
    assert not torch.equal(first, second)  # also in the micro-batches of one iteration
    torch.manual_seed(5)
    (scaled,) = masks(loss)
    assert not torch.equal(first, scaled)
    # A process started with the second seed.
    restarted = make_loss(0.5)
    torch.manual_seed(5)
    assert torch.equal(masks(restarted)[0], scaled)


@pytest.mark.parametrize("share", [1.0, -0.1, float("nan")])
def test_invalid_masked_share_is_refused(share):
    with pytest.raises(AIDError, match=f"MASKED_SHARE is {share}: it must be at least 0, below 1"):
        make_loss(share)
