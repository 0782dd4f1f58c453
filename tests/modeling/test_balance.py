"""DISTILLATION.BALANCE: the ratio of distillation gradients to task gradients."""

import copy
import math

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch.nn.parallel import DistributedDataParallel

from aid.modeling.balance import Balance
from aid.utils.errors import AIDError

PKD = ["DISTILLATION.LOSSES", ["PKDLoss"], "DISTILLATION.BALANCE", 3.0]
NORMALIZER = 100
FROZEN = ["MODEL.RESNETS.NORM", "FrozenBN"]


def losses_of(model, batch, iteration, seed=5):
    torch.manual_seed(seed)
    with EventStorage(iteration) as storage, torch.jit.optimized_execution(False):
        return model(copy.deepcopy(batch)), storage


def step(model, batch, iteration, multiplier=1.0):
    losses, _ = losses_of(model, batch, iteration)
    model.zero_grad()
    (multiplier * sum(losses.values())).backward()
    getattr(model, "module", model).balance.update()
    return losses


def norms(model, batch, iteration):
    """Norms of the task's gradient and of the distillation's at the feature maps."""
    maps = {}
    handle = model.backbone.register_forward_hook(lambda _, inputs, out: maps.update(out))
    model.loss_normalizer = NORMALIZER  # of dense detectors, a running mean
    losses, _ = losses_of(model, batch, iteration)
    handle.remove()
    levels = [maps[level] for level in model.distillers[0].strides]
    actual = []
    for is_distillation in (False, True):
        total = sum(v for k, v in losses.items() if ("distill" in k) == is_distillation)
        gradients = torch.autograd.grad(total, levels, retain_graph=True, allow_unused=True)
        actual.append(torch.cat([g.flatten() for g in gradients if g is not None]).norm())
    return actual


@pytest.mark.parametrize(
    "student, loss",
    [
        ("faster_rcnn", "PKDLoss"),
        ("faster_rcnn", "ResponseLoss"),
        ("retinanet", "NonLocalLoss"),
        ("retinanet", "ResponseLoss"),
        ("gfl", "LocalisationLoss"),
        ("fcos", "FGDLoss"),
    ],
)
def test_distillation_gradient_has_the_configured_ratio(student, loss, student_model, make_batch):
    opts = ["DISTILLATION.LOSSES", [loss], "DISTILLATION.BALANCE", 3.0]
    opts += ["DISTILLATION.RESPONSE.MIN_SCORE", 0.005]
    model, _ = student_model(student, opts=opts)
    model.loss_normalizer, batch = NORMALIZER, make_batch((2, 0, 3))
    losses = step(model, batch, 0)
    assert all(v == 0 for k, v in losses.items() if "distill" in k)  # not measured yet
    task, distillation = norms(model, batch, 11)
    torch.testing.assert_close(distillation, 3 * task, rtol=1e-3, atol=0)
    model.loss_normalizer = NORMALIZER
    step(model, batch, 1)  # measured again, now beside distillation
    task, distillation = norms(model, batch, 12)
    torch.testing.assert_close(distillation, 3 * task, rtol=1e-3, atol=0)


def trained(model, batch, iterations, **kwargs):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    for iteration in range(iterations):
        step(model, batch, iteration, **kwargs)
        optimizer.step()
    return {k: v.clone() for k, v in model.state_dict().items() if "distillation" not in k}


def test_balance_is_invariant_to_the_weight_of_a_loss(student_model, make_batch):
    batch, actual = make_batch(), []
    for weight in (1.0, 100.0, 0.01):
        opts = [*PKD, "DISTILLATION.PKD.WEIGHT", weight]
        actual.append(trained(student_model("retinanet", opts=opts)[0], batch, 4))
    opts = [*PKD, "DISTILLATION.WEIGHT", 0.0]
    plain = trained(student_model("retinanet", opts=opts)[0], batch, 4)
    effect, *rounding = (
        sum((x[k] - v).float().square().sum() for k, v in actual[0].items()).sqrt()
        for x in (plain, *actual[1:])
    )
    assert effect > 1e-3 and max(rounding) < 0.03 * effect


def test_balance_is_invariant_to_the_loss_scale(student_model, make_batch):
    factors = []
    for multiplier in (1.0, 1024.0):
        model, _ = student_model("retinanet", opts=PKD)
        for iteration in range(3):
            step(model, make_batch(), iteration, multiplier)
        factors.append(model.balance.factor)
    assert factors[0] == factors[1] > 0


def test_balance_measures_from_the_first_iteration_of_imitation(student_model, make_batch):
    """Imitation that starts late would have no strength until the next tenth iteration."""
    model, _ = student_model("faster_rcnn", opts=[*PKD, "DISTILLATION.SCHEDULE.START_ITER", 13])
    for iteration in (13, 14):
        step(model, make_batch(), iteration)
    losses, _ = losses_of(model, make_batch(), 15)
    assert losses["loss_distill_pkd"] > 0


def test_weight_and_schedule_multiply_the_balance_factor(student_model, make_batch):
    model, _ = student_model("faster_rcnn", opts=PKD)
    step(model, make_batch(), 0)
    full, storage = losses_of(model, make_batch(), 19)
    factor = model.balance.factor.item()
    assert storage.latest()["aid/distillation_weight"][0] == pytest.approx(factor)
    opts = [*PKD, "DISTILLATION.WEIGHT", 0.5, "DISTILLATION.SCHEDULE.DECAY", "linear"]
    model, _ = student_model("faster_rcnn", opts=[*opts, "SOLVER.MAX_ITER", 25])
    step(model, make_batch(), 0)
    actual, storage = losses_of(model, make_batch(), 19)
    expected = pytest.approx(0.5 * 6 / 25 * factor)
    assert storage.latest()["aid/distillation_weight"][0] == expected
    torch.testing.assert_close(
        actual["loss_distill_pkd"], 0.5 * 6 / 25 * full["loss_distill_pkd"], rtol=1e-5, atol=0
    )


def test_balance_of_zero_adds_no_state(student_model):
    model, _ = student_model("faster_rcnn", opts=["DISTILLATION.BALANCE", 0.0])
    assert model.balance is None and not any("balance" in k for k in model.state_dict())


def quotients(balance, *pairs):
    for task, distillation in pairs:
        balance.squares.copy_(torch.tensor([task**2, distillation**2]))
        balance._iteration = 0
        balance.update()
    return balance.factor.item()


def test_known_values_of_the_running_mean():
    assert quotients(Balance(2.0)) == 0
    assert quotients(Balance(2.0), (6.0, 3.0)) == pytest.approx(4)
    assert quotients(Balance(1.0), (1.0, 1.0), (100.0, 1.0)) == pytest.approx(10)
    expected = math.exp(0.7 * math.log(10) / 2 + 0.3 * math.log(10))  # the fourth counts 0.3
    pairs = [(1.0, 1.0), (10.0, 1.0), (math.sqrt(10), 1.0), (10.0, 1.0)]
    assert quotients(Balance(1.0), *pairs) == pytest.approx(expected)


@pytest.mark.parametrize("pair", [(1.0, 0.0), (math.nan, 1.0), (1.0, math.inf), (0.0, 1.0)])
def test_invalid_gradient_norms_leave_the_factor_unchanged(pair):
    balance = Balance(1.0)
    assert quotients(balance, pair) == 0
    assert quotients(balance, (3.0, 1.0)) == pytest.approx(3)
    assert quotients(balance, pair) == pytest.approx(3)


@pytest.mark.parametrize("known, warns", [([], True), ([0], False), ([9], False), ([10], True)])
def test_unmeasurable_balance_is_warned_about_once(known, warns, caplog):
    """The warning follows the first iterations, each of which is measured."""
    balance = Balance(1.0)
    pairs = [(3.0, 1.0 if i in known else 0.0) for i in range(40)]
    quotients(balance, *pairs[:9])
    assert "BALANCE" not in caplog.text
    quotients(balance, *pairs[9:])
    warnings = [m for m in caplog.messages if "could not be measured in 10 attempts" in m]
    assert len(warnings) == warns


def test_resumed_balance_does_not_warn(caplog):
    resumed = Balance(1.0)
    resumed.num_measured.fill_(1)
    quotients(resumed, *[(3.0, 0.0)] * 12)
    assert "BALANCE" not in caplog.text


def test_factor_is_updated_once_per_iteration(student_model, make_batch):
    """Micro-batches of one iteration are measured together and share one factor."""
    model, _ = student_model("faster_rcnn", opts=PKD)
    for seed in (0, 1):
        losses, _ = losses_of(model, make_batch(seed=seed), 0)
        sum(losses.values()).backward()
        assert model.balance.num_measured == 0
    squares = model.balance.squares.clone()
    model.balance.update()
    assert model.balance.num_measured == 1
    expected = 3 * (squares[0] / squares[1]).sqrt()
    torch.testing.assert_close(model.balance.factor, expected)
    losses_of(model, make_batch(), 3)  # without a trainer's call: at the next forward pass
    sum(losses_of(model, make_batch(), 4)[0].values()).backward()
    losses_of(model, make_batch(), 5)
    assert model.balance.num_measured == 2


def factor_in_a_process(model, batch):
    from detectron2.utils import comm

    share = len(batch) // comm.get_world_size()
    start = share * comm.get_rank()
    wrapped = DistributedDataParallel(model, broadcast_buffers=False)
    for iteration in (0, 1):
        step(wrapped, batch[start : start + share], iteration)
    return model.balance.factor


def test_all_processes_have_the_same_factor(student_model, make_batch, in_processes):
    model, _ = student_model("faster_rcnn", opts=[*PKD, *FROZEN])
    first, second = in_processes(2, factor_in_a_process, model, make_batch((2, 1, 3, 1)))
    assert first == second > 0


@pytest.mark.parametrize("ratio", [-1.0, math.nan, math.inf])
def test_invalid_ratio_is_refused(ratio):
    with pytest.raises(AIDError, match=f"DISTILLATION.BALANCE is {ratio}: it must be 0 "):
        Balance(ratio)
