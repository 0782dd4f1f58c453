"""Gradient accumulation: known gradients, and equality with several processes."""

import functools

import pytest
import torch
from detectron2.solver.build import maybe_add_gradient_clipping
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, get_event_storage
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from aid.config import load_config
from aid.engine.accumulation import AccumulatingAMPTrainer, AccumulatingTrainer

TRAINERS = [AccumulatingTrainer, AccumulatingAMPTrainer]


class Weight(nn.Module):
    """One weight w, initially 1, with the losses w * x on an image x and 3."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, batch):
        (x,) = (sample["image"] for sample in batch)
        get_event_storage().put_scalar("seen", x)
        return {"loss": (self.weight * x).sum(), "three": 3 + 0 * self.weight.sum()}


def run(kind, numbers, steps, model=None, optimizer=torch.optim.SGD):
    """Weight, log and trainer after one iteration with images of one number each."""
    model = model or Weight()
    (weight,) = model.parameters()
    loader = [[{"image": torch.tensor(x), "file_name": f"{x}.png"}] for x in numbers]
    trainer = kind(model, loader, optimizer([weight], lr=0.01), steps)
    with EventStorage(0) as storage:
        trainer.iter = 0
        trainer.run_step()
        log = {name: value for name, (value, _) in storage.latest().items()}
    return weight.item(), log, trainer


@pytest.mark.parametrize("kind", TRAINERS)
@pytest.mark.parametrize(
    "numbers, steps, mean", [([4.0, 9.0], 1, 4.0), ([1.0, 2.0, 6.0, 9.0], 3, 3.0)]
)
def test_step_uses_the_mean_of_known_gradients(kind, numbers, steps, mean):
    weight, log, _ = run(kind, numbers, steps)
    assert weight == pytest.approx(1 - 0.01 * mean, abs=1e-6)
    assert log["loss"] == pytest.approx(mean)
    assert log["three"] == 3 and log["total_loss"] == pytest.approx(mean + 3)
    assert log["seen"] == numbers[steps - 1]


@pytest.mark.parametrize("kind", TRAINERS)
def test_mean_gradient_is_clipped(kind, tiny_config):
    opts = ["SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 2.5]
    clipped = maybe_add_gradient_clipping(
        load_config(tiny_config("faster_rcnn", opts)), torch.optim.SGD
    )
    for numbers, gradient in (([-8.0, 12.0], 2.0), ([2.0, 12.0], 2.5)):
        weight, _, _ = run(kind, numbers, 2, optimizer=clipped)
        assert weight == pytest.approx(1 - 0.01 * gradient, abs=1e-6)


@pytest.mark.parametrize("kind", TRAINERS)
@pytest.mark.parametrize("numbers", [[3e38, 1.0], [1.0, 3e38]])
def test_error_names_the_micro_batch_of_a_non_finite_loss(kind, numbers):
    model = Weight()
    nn.init.constant_(model.weight, 10.0)
    with pytest.raises(FloatingPointError, match=r"^loss is inf on images 3e\+38.png$"):
        run(kind, numbers, 2, model)
    assert model.weight.item() == 10


def test_mixed_precision_skips_a_step_with_overflow():
    weight, _, trainer = run(AccumulatingAMPTrainer, [1e35, 1.0], 2)
    assert weight == 1
    assert trainer.state_dict()["grad_scaler"]["scale"] == 2.0**15  # halved


@pytest.mark.parametrize("steps", [1, 2])
def test_bfloat16_has_no_loss_scale(steps):
    kind = functools.partial(AccumulatingAMPTrainer, precision=torch.bfloat16)
    weight, _, trainer = run(kind, [1e35, 1e35], steps)
    assert weight == pytest.approx(-1e33)  # the loss is far beyond float16, and no step is skipped
    assert trainer.state_dict()["grad_scaler"] == {}


def test_state_loads_into_another_precision():
    trainers = {
        "float32": run(AccumulatingTrainer, [1.0], 1)[2],
        "float16": run(AccumulatingAMPTrainer, [1e35], 1)[2],
        "bfloat16": run(
            functools.partial(AccumulatingAMPTrainer, precision=torch.bfloat16), [1.0], 1
        )[2],
    }
    saved = {name: trainer.state_dict() for name, trainer in trainers.items()}
    for name, trainer in trainers.items():
        for before, state in saved.items():
            trainer.load_state_dict(state)
            if name == "float16":
                assert trainer.grad_scaler.get_scale() == 2.0**15, before


class DistillationOnly(nn.Module):
    """A student trained on distillation terms only: the other losses draw random samples."""

    def __init__(self, student):
        super().__init__()
        self.student = student

    def forward(self, batch):
        terms = {k: v for k, v in self.student(batch).items() if "distill" in k}
        return {**terms, "rest": 0 * sum(p.sum() for p in self.student.parameters())}


def gradients(student, batch, steps):
    """Gradients of one iteration over this process's share of the batch in micro-batches."""
    share = len(batch) // comm.get_world_size()
    batch = batch[share * comm.get_rank() :][:share]
    model = DistillationOnly(student)
    if comm.get_world_size() > 1:
        model = DistributedDataParallel(model, broadcast_buffers=False)
    model.train()
    size = share // steps
    loader = [batch[i : i + size] for i in range(0, share, size)]
    trainer = AccumulatingTrainer(model, loader, torch.optim.SGD(model.parameters(), 0.0), steps)
    with EventStorage(19):
        trainer.iter = 19
        trainer.run_step()
    return {name: p.grad for name, p in student.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("processes, steps", [(1, 4), (2, 2), (1, 2)])
def test_gradients_of_micro_batches_equal_those_of_processes(
    processes, steps, student_model, make_batch, in_processes
):
    # NonLocalLoss is left out: its batch norm depends on the micro-batch.
    opts = ["MODEL.RESNETS.NORM", "FrozenBN", "DISTILLATION.LOSSES", ["AttentionGuidedLoss"]]
    model, _ = student_model("faster_rcnn", opts=opts)
    batch = make_batch((2, 0, 3, 1))
    expected = in_processes(4, gradients, model, batch, 1)[0]
    for actual in in_processes(processes, gradients, model, batch, steps):
        for name, gradient in expected.items():
            error = (actual[name] - gradient).abs().max()
            assert error <= 5e-4 * gradient.abs().max() + 1e-6, name
    assert any(gradient.abs().max() > 1e-3 for gradient in expected.values())
