"""Schedule of the distillation weight, and steps in which it is 0."""

import copy
import itertools

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch.nn.parallel import DistributedDataParallel

from aid.modeling.schedule import DECAYS, Schedule
from aid.utils.errors import AIDError

KEYS = "DISTILLATION.SCHEDULE"


def factors(num=10, **options):
    schedule = Schedule(max_iter=10, **options)
    return [schedule(iteration) for iteration in range(num)]


def test_default_factor_is_always_1():
    assert factors(num=30) == [1.0] * 30


def test_start_and_end_are_half_open():
    assert factors(start=3, end=6) == [0, 0, 0, 1, 1, 1, 0, 0, 0, 0]
    assert factors(start=8, num=12) == [0] * 8 + [1] * 4  # without an end, also beyond MAX_ITER


def test_warmup_rises_from_above_0_to_1():
    assert factors(start=2, warmup=3) == [0, 0, 0.25, 0.5, 0.75, 1, 1, 1, 1, 1]


def test_known_values_of_linear_and_cosine_decay():
    linear = factors(start=1, end=7, warmup=2, decay="linear")
    assert linear == pytest.approx([0, 1 / 3, 2 / 3, 1, 0.75, 0.5, 0.25, 0, 0, 0])
    cosine = factors(decay="cosine", num=12)  # 0 from MAX_ITER on
    assert cosine[:6:5] == pytest.approx([1, 0.5]) and cosine[10:] == pytest.approx([0, 0])
    assert cosine[2] == pytest.approx((1 + 0.8090169944) / 2)  # cos 36 degrees


def test_decay_is_monotonic_and_positive_before_the_end():
    options = itertools.product((0, 2), (0, 9), (0, 3), DECAYS)
    for start, end, warmup, decay in options:
        actual = factors(start=start, end=end, warmup=warmup, decay=decay)
        assert all(0 < x <= 1 for x in actual[start : end or 10])
        assert not any(actual[:start]) and not any(actual[end or 10 :])
        after = actual[start + warmup : end or 10]
        assert after == sorted(after, reverse=True) and after[0] == 1


@pytest.mark.parametrize(
    "opts, message",
    [
        (["DECAY", "step"], "DECAY: 'step' is unknown, choose one of none, linear, cosine"),
        (["START_ITER", -1], "START_ITER is -1: it must be 0 or more"),
        (["END_ITER", -1], "END_ITER is -1"),
        (["WARMUP_ITERS", -2], "WARMUP_ITERS is -2"),
        (["START_ITER", 7, "END_ITER", 7], "START_ITER is 7, END_ITER 7, .*no iteration would"),
        (["START_ITER", 90], "START_ITER is 90, .*SOLVER.MAX_ITER 90: no iteration would"),
        (["START_ITER", 91, "END_ITER", 99], "START_ITER is 91, .*no iteration would"),
        (
            ["START_ITER", 60, "WARMUP_ITERS", 31],
            "WARMUP_ITERS is 31, longer than the 30 iterations from START_ITER 60 to the end at 90",
        ),
        (["END_ITER", 8, "WARMUP_ITERS", 9], "WARMUP_ITERS is 9, longer than the 8 iterations"),
    ],
)
def test_contradictory_values_are_one_line_errors(opts, message, student_model):
    opts = [f"{KEYS}.{x}" if i % 2 == 0 else x for i, x in enumerate(opts)]
    with pytest.raises(AIDError, match=rf"{KEYS}\.{message}") as error:
        student_model("faster_rcnn", opts=[*opts, "SOLVER.MAX_ITER", 90])
    assert "\n" not in str(error.value)


def step(model, batch, iteration, seed=5):
    """Losses and gradients of one iteration whose random numbers start at ``seed``."""
    torch.manual_seed(seed)
    with EventStorage(iteration) as storage, torch.jit.optimized_execution(False):
        losses = model(copy.deepcopy(batch))
        model.zero_grad()
        sum(losses.values()).backward()
    return losses, {k: p.grad for k, p in model.named_parameters()}, storage.latest()


@pytest.mark.parametrize("student", ["faster_rcnn", "retinanet"])
def test_paused_step_equals_plain_detectron2_and_runs_no_teacher(
    student, student_model, tiny_model, make_batch, monkeypatch
):
    batch = make_batch((2, 0, 3))
    opts = [f"{KEYS}.START_ITER", 2, "AID.WEIGHTING", "StudentAwareWeighting"]
    distilled, _ = student_model(student, opts=opts)
    plain = tiny_model(student).train()
    monkeypatch.setattr(distilled.teacher, "view", None)
    for iteration in (0, 1):
        expected, gradients, _ = step(plain, batch, iteration)
        expected_next = torch.rand(1)
        actual, actual_gradients, _ = step(distilled, batch, iteration)
        assert torch.equal(torch.rand(1), expected_next)
        assert actual.pop("loss_distill_paused") == 0
        assert actual.keys() == expected.keys()
        assert all(torch.equal(actual[k], v) for k, v in expected.items())
        assert all(torch.equal(actual_gradients[k], v) for k, v in gradients.items())
        adapters = [actual_gradients[k] for k in actual_gradients if k not in gradients]
        assert adapters and all((gradient == 0).all() for gradient in adapters)
    with pytest.raises(TypeError):  # the first step that runs the teacher
        step(distilled, batch, 2)


def test_terms_are_scaled_by_the_schedule_factor(student_model, make_batch):
    batch, weight = make_batch(), ["DISTILLATION.WEIGHT", 3.0]
    full, _, log = step(student_model("faster_rcnn", opts=weight)[0], batch, 19)
    assert log["aid/distillation_weight"][0] == 3
    opts = [*weight, f"{KEYS}.DECAY", "linear", f"{KEYS}.END_ITER", 25]
    actual, _, log = step(student_model("faster_rcnn", opts=opts)[0], batch, 19)
    assert log["aid/distillation_weight"][0] == pytest.approx(3 * 6 / 25)
    for name, term in full.items():
        factor = 6 / 25 if "distill" in name else 1
        torch.testing.assert_close(actual[name], factor * term)


def test_paused_distillation_is_logged(student_model, make_batch):
    model, _ = student_model("faster_rcnn", opts=[f"{KEYS}.END_ITER", 19, "VIS_PERIOD", 1])
    _, _, log = step(model, make_batch(), 19)
    assert log["aid/distillation_weight"][0] == 0
    assert not any(name.startswith("aid/weight") for name in log)


def test_loss_without_parameters_is_paused(student_model, make_batch):
    opts = ["DISTILLATION.LOSSES", ["ResponseLoss"], f"{KEYS}.START_ITER", 2]
    model, _ = student_model("faster_rcnn", opts=opts)
    assert not any("distill" in name for name in step(model, make_batch(), 1)[0])
    assert any("distill" in name for name in step(model, make_batch(), 2)[0])


def gradients_in_ddp(model, batch):
    wrapped = DistributedDataParallel(model, broadcast_buffers=False)
    actual = []
    for iteration in (0, 1, 2):  # DDP reports unused parameters one iteration later
        actual.append(step(wrapped, batch, iteration)[1])
    return actual


def test_ddp_needs_no_search_for_unused_parameters(student_model, make_batch, in_processes):
    opts = ["MODEL.RESNETS.NORM", "FrozenBN", f"{KEYS}.START_ITER", 1, f"{KEYS}.END_ITER", 2]
    model, _ = student_model("faster_rcnn", opts=opts)
    first, second = in_processes(2, gradients_in_ddp, model, make_batch((2, 0)))
    distilled = []
    for a, b in zip(first, second, strict=True):
        assert all(x is not None and torch.equal(x, b[k]) for k, x in a.items())
        distilled.append(any((x != 0).any() for k, x in a.items() if "distillation." in k))
    assert distilled == [False, True, False]
