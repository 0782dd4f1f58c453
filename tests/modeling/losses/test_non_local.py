"""Non-local loss: the reassociated product, batch norm and known values."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from aid.modeling.losses.functional import standardized
from aid.modeling.losses.non_local import NonLocalBlock, NonLocalLoss

pytestmark = pytest.mark.core


def make_loss(channels=None, subsample=(2,)):
    channels = channels or {"p2": (4, 4)}
    return NonLocalLoss(
        channels=channels,
        subsample=list(subsample),
        weight=1.0,
        scale="sum",
        train_teacher=True,
        standardize=False,
        adapt_equal_widths=True,
    )


def random_block(*args):
    """Block in double precision, far from the identity."""
    block = NonLocalBlock(*args).double()
    for parameter in block.norm.parameters():
        nn.init.normal_(parameter)
    nn.init.normal_(block.norm.running_mean), nn.init.uniform_(block.norm.running_var, 0.5, 2)
    return block


def output(block, x):
    mixing, queries, offset = block.mix(x)
    return x + (mixing @ queries + offset[:, None]).view_as(x)


def run(loss, student, teacher):
    weights = {"p2": torch.ones_like(student[:, :1])}
    return loss({"p2": student}, {"p2": teacher}, weights, None)


def test_block_starts_as_the_identity():
    x = torch.randn(2, 4, 3, 5)
    assert torch.equal(output(NonLocalBlock(4, 2, 2), x), x)


@pytest.mark.parametrize("subsample, size", [(1, (3, 5)), (2, (4, 6)), (8, (3, 20))])
def test_block_equals_the_product_in_the_usual_order(subsample, size):
    torch.manual_seed(0)
    block = random_block(4, 2, subsample)
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    kernel = [min(subsample, side) for side in size]
    theta = block.theta(x).flatten(2).transpose(1, 2)
    phi = F.max_pool2d(block.phi(x), kernel).flatten(2)
    g = F.max_pool2d(block.g(x), kernel).flatten(2).transpose(1, 2)
    relations = theta @ phi / phi.shape[2]  # (N, H * W, P)
    mixed = block.out((relations @ g).transpose(1, 2).view(2, 2, *size))
    reference = copy.deepcopy(block.norm)
    torch.testing.assert_close(output(block, x), x + reference(mixed))
    torch.testing.assert_close(block.norm.state_dict(), reference.state_dict())
    block.eval(), reference.eval()
    torch.testing.assert_close(output(block, x), x + reference(mixed))


def test_batch_norm_in_eval_mode_folds_into_the_convolution():
    """The reference block has the scale and bias of batch norm in its convolution."""
    torch.manual_seed(0)
    block = random_block(4, 2, 2).eval()
    folded = copy.deepcopy(block)
    norm = block.norm
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()
    with torch.no_grad():
        folded.out.weight.mul_(scale[:, None, None, None])
        folded.out.bias.copy_(norm.bias + scale * (block.out.bias - norm.running_mean))
    nn.init.ones_(folded.norm.weight), nn.init.zeros_(folded.norm.bias)
    folded.norm.running_mean.zero_(), folded.norm.running_var.fill_(1 - norm.eps)
    x = torch.randn(2, 4, 5, 7, dtype=torch.float64, requires_grad=True)
    actual, expected = output(block, x), output(folded, x)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    target = torch.randn_like(x)
    gradients = [torch.autograd.grad((y - target).norm(), x) for y in (actual, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


def test_first_step_stays_small_for_large_features():
    """The block's product is cubic in the features: a step without batch norm explodes."""
    torch.manual_seed(0)
    loss = make_loss({"p2": (16, 16)}).train()
    student, teacher = 6 * torch.randn(2, 2, 16, 12, 20)
    optimizer = torch.optim.AdamW(loss.parameters(), lr=2e-3)
    sum(run(loss, student, teacher).values()).backward()
    optimizer.step()
    with torch.no_grad():
        for block in (loss.blocks["p2"].student, loss.blocks["p2"].teacher):
            assert (output(block, teacher) - teacher).norm() < 0.01 * teacher.norm()


def test_untrained_teacher_block_is_omitted():
    loss = NonLocalLoss(channels={"p2": (4, 4)}, subsample=[2], weight=2.0, scale="sum")
    assert loss.blocks["p2"].teacher is None and isinstance(loss.blocks["p2"].adapter, nn.Identity)
    student, teacher = torch.randn(2, 2, 4, 5, 7)
    actual = run(loss, student, teacher)["loss_distill_non_local"]
    ones = torch.ones(2, 1, 5, 7)
    difference = standardized(student, ones) - standardized(teacher, ones)
    torch.testing.assert_close(actual, 2 * difference.flatten(1).norm(dim=1).mean())


def test_image_of_weight_zero_leaves_the_others_their_loss():
    """The batch norm sees it, too."""
    torch.manual_seed(0)
    loss = NonLocalLoss(channels={"p2": (4, 4)}, subsample=[2], weight=1.0, scale="sum")
    nn.init.ones_(loss.blocks["p2"].student.norm.weight)
    student, teacher = torch.randn(2, 2, 4, 5, 7)

    def at_weight(weight: float) -> torch.Tensor:
        weights = torch.tensor([1.0, weight])[:, None, None, None].expand(2, 1, 5, 7)
        terms = loss({"p2": student}, {"p2": teacher}, {"p2": weights}, None)
        return terms["loss_distill_non_local"]

    torch.testing.assert_close(at_weight(0.0), at_weight(1e-6), rtol=1e-4, atol=0)


def test_known_initial_value():
    loss = make_loss()
    blocks = loss.blocks["p2"]
    nn.init.zeros_(blocks.adapter.bias)
    with torch.no_grad():
        blocks.adapter.weight[:, :, 0, 0] = torch.eye(4)
    student, teacher = torch.zeros(1, 4, 2, 2), torch.full((1, 4, 2, 2), 3.0)
    actual = loss({"p2": student}, {"p2": teacher}, {"p2": torch.full((1, 1, 2, 2), 0.5)}, None)
    torch.testing.assert_close(actual["loss_distill_non_local"], torch.tensor(0.5 * 3 * 4.0))


def test_loss_equals_its_blocks_in_sequence():
    torch.manual_seed(0)
    loss = make_loss({"p2": (4, 6)}).double()
    blocks = loss.blocks["p2"]
    for block in (blocks.student, blocks.teacher):
        nn.init.normal_(block.norm.weight)
        nn.init.normal_(block.norm.bias)
    student = torch.randn(2, 4, 4, 6, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 6, 4, 6, dtype=torch.float64)
    weight = torch.rand(2, 1, 4, 6, dtype=torch.float64)
    difference = blocks.adapter(output(blocks.student, student)) - output(blocks.teacher, teacher)
    expected = (weight * difference).flatten(1).norm(dim=1).mean()
    actual = loss({"p2": student}, {"p2": teacher}, {"p2": weight}, None)["loss_distill_non_local"]
    torch.testing.assert_close(actual, expected)
    inputs = [student, *loss.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad(actual, inputs), torch.autograd.grad(expected, inputs)
    )


def test_inner_channels_and_subsampling_equal_the_authors_code():
    channels = {level: (256, 256) for level in ("p2", "p3", "p4", "p5", "p6", "p7")}
    blocks = make_loss(channels, (8, 4, 2, 2, 2)).blocks
    assert [b.student.theta.out_channels for b in blocks.values()] == [64, 64, 128, 128, 128, 128]
    assert [b.teacher.subsample for b in blocks.values()] == [8, 4, 2, 2, 2, 2]


def test_teacher_block_is_trained():
    loss = make_loss({"p2": (4, 6), "p3": (4, 6)})
    student = {"p2": torch.randn(2, 4, 4, 5), "p3": torch.randn(2, 4, 2, 1)}
    teacher = {"p2": torch.randn(2, 6, 4, 5), "p3": torch.randn(2, 6, 2, 1)}
    weights = {k: torch.ones(2, 1, *v.shape[2:]) for k, v in student.items()}
    loss(student, teacher, weights, None)["loss_distill_non_local"].backward()
    assert loss.blocks["p2"].teacher.norm.weight.grad.abs().sum() > 0
