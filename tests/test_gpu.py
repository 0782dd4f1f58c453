"""Distillation on a GPU, compared with the CPU. `make gpu-check` runs these tests, among others.

AID_TEST_DEVICE names another device; "cpu" rehearses the tests without a GPU.
"""

import functools
import os
from contextlib import contextmanager

import pytest
import torch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from aid.engine.accumulation import AccumulatingAMPTrainer
from aid.modeling.balance import PERIOD
from aid.modeling.losses import DISTILLATION_LOSS_REGISTRY, FeatureLoss

DEVICE = os.getenv("AID_TEST_DEVICE", "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        DEVICE != "cpu" and not torch.cuda.is_available(), reason="torch finds no GPU"
    ),
]

FEATURES = [k for k, x in DISTILLATION_LOSS_REGISTRY if issubclass(x, FeatureLoss)]
PREDICTIONS = {
    "faster_rcnn": ["ResponseLoss"],
    "mask_rcnn": ["ResponseLoss"],
    "cascade_rcnn": [],  # its stages predict separately
    "retinanet": ["ResponseLoss", "CrossKDLoss"],
    "gfl": ["ResponseLoss", "CrossKDLoss", "LocalisationLoss"],
    "fcos": ["ResponseLoss", "CrossKDLoss"],
}


@pytest.fixture
def make_student(student_model, make_batch):
    """A function (kind, config overrides) -> student with all losses on the CPU, and its batch."""

    def make(kind, opts=()):
        keys = ["DISTILLATION.LOSSES", [*FEATURES, *PREDICTIONS[kind]]]
        keys += ["DISTILLATION.BALANCE", 5.0]
        keys += ["DISTILLATION.MGD.MASKED_SHARE", 0.0]  # the masks of two steps differ
        model, _ = student_model(kind, opts=[*keys, *opts])
        return model, make_batch((2, 0, 3), masks=kind == "mask_rcnn")

    return make


def distill(model: nn.Module, batch: list[dict], iteration: int = 0) -> dict:
    """D, weights, and distillation losses before their common factor, on the CPU."""
    found = {}

    def record(module, inputs, weights):
        found.update(D=weights.loss, weights=weights.instance, **weights.maps)

    handles = [model.weighting.register_forward_hook(record)]
    for loss in model.distillers[0].losses.values():
        handles.append(loss.register_forward_hook(lambda module, inputs, x: found.update(x)))
    torch.manual_seed(5)
    with EventStorage(iteration):
        model(batch)
    for handle in handles:
        handle.remove()
    return {name: x.detach().cpu() for name, x in found.items()}


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_losses_and_d_are_those_of_the_cpu(kind, make_student, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    model, batch = make_student(kind)
    expected = distill(model, batch)
    model.to(DEVICE)
    actual = distill(model, batch)
    assert model.teacher.device.type == model.device.type == torch.device(DEVICE).type
    assert actual.keys() == expected.keys() and len(actual["D"]) == 5
    for name, x in expected.items():
        torch.testing.assert_close(
            actual[name], x, rtol=5e-3, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", PREDICTIONS)
def test_iterations_in_half_precision_are_finite(kind, dtype, make_student):
    if DEVICE == "cpu" and dtype == torch.float16:
        pytest.skip("the CPU has no float16")
    model, batch = make_student(kind)
    model.to(DEVICE)
    before = [x.detach().clone() for x in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    trainer = AccumulatingAMPTrainer(model, [batch] * 2, optimizer, precision=dtype)
    trainer.train(0, 2)  # fails if a loss is not finite; the second one imitates
    assert all(x.isfinite().all() for x in model.parameters())
    if dtype == torch.bfloat16:  # in float16 the first steps may only lower the gradient scale
        pairs = zip(model.parameters(), before, strict=True)
        assert any(not torch.equal(x, y) for x, y in pairs)


@contextmanager
def synchronization(mode: str):
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def under(mode: str, function):
    @functools.wraps(function)
    def call(*args, **kwargs):
        with synchronization(mode):
            return function(*args, **kwargs)

    return call


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_imitation_does_not_wait_for_the_gpu(kind, student_model, make_batch, monkeypatch):
    """Except in the teacher's losses, where Detectron2's matchers and anchor grids do."""
    if DEVICE == "cpu":
        pytest.skip("only a GPU is waited for")
    with synchronization("error"), pytest.raises(RuntimeError, match="synchronizing"):
        torch.ones(1, device=DEVICE).item()
    opts = ["DISTILLATION.LOSSES", FEATURES, "DISTILLATION.BALANCE", 5.0, "AID.NORMALIZE", True]
    model, _ = student_model(kind, opts=opts)
    batch = make_batch((2, 0, 3), masks=kind == "mask_rcnn")
    model.to(DEVICE)
    distill(model, batch, PERIOD + 1)  # kernels are loaded
    teacher = model.teacher
    free = under("default", teacher.per_instance_losses)
    monkeypatch.setattr(teacher, "per_instance_losses", free)
    for name in ("_distillation_losses", "_weighted"):
        monkeypatch.setattr(model, name, under("error", getattr(model, name)))
    for iteration in (PERIOD + 1, 2 * PERIOD):  # an ordinary one, and one that measures gradients
        with EventStorage(iteration):
            losses = model(batch)
        imitation = sum(x for name, x in losses.items() if name.startswith("loss_distill"))
        with synchronization("error"):
            imitation.backward()


def test_step_in_a_group_of_one_process(make_student, tmp_path, monkeypatch):
    """DDP and the project's own collectives, by NCCL on a GPU and by gloo on the CPU."""
    model, batch = make_student("faster_rcnn", ["AID.NORMALIZE", True])
    model.to(DEVICE)

    def gradients(student):
        model.zero_grad()
        torch.manual_seed(5)
        with EventStorage(0):
            sum(student(batch).values()).backward()
        return {k: x.grad.clone() for k, x in model.named_parameters() if x.grad is not None}

    gradients(model)
    model.balance.update()  # its factor is 0 until then
    expected = gradients(model)
    backend = "nccl" if DEVICE.startswith("cuda") else "gloo"
    distributed.init_process_group(
        backend, init_method=f"file://{tmp_path}/group", rank=0, world_size=1
    )
    try:
        # A single process would skip the collectives.
        monkeypatch.setattr(comm, "get_world_size", lambda: 2)
        gpu = [model.device.index] if backend == "nccl" else None
        parallel = DistributedDataParallel(model, device_ids=gpu, broadcast_buffers=False)
        actual = gradients(parallel)
        model.balance.update()
    finally:
        distributed.destroy_process_group()
    assert any(name.startswith("distillation") for name in expected)
    for name, x in expected.items():
        assert (actual[name] - x).abs().max() <= 1e-3 * x.abs().max() + 1e-6, name
