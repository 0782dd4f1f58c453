"""Data-parallel training: gradients equal those of one process with the whole batch."""

import pytest
import torch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch.nn.parallel import DistributedDataParallel

pytestmark = pytest.mark.core

NUM_INSTANCES = (2, 0, 3, 1)  # with four processes, one has no instance
# Its gradients would be below the absolute tolerance otherwise.
NON_LOCAL = ["DISTILLATION.NON_LOCAL.WEIGHT", 1.0]


def gradients(model, batch, only_distillation=True):
    with EventStorage(19):
        losses = model(batch)
    selected = {k: v for k, v in losses.items() if "distill" in k or not only_distillation}
    sum(selected.values()).backward()
    student = getattr(model, "module", model)
    return {k: p.grad for k, p in student.named_parameters() if p.grad is not None}


def gradients_of_a_shard(model, batch, only_distillation=True):
    share = len(batch) // comm.get_world_size()
    start = share * comm.get_rank()
    # Distillation alone leaves the heads without gradients.
    wrapped = DistributedDataParallel(
        model, broadcast_buffers=False, find_unused_parameters=only_distillation
    )
    return gradients(wrapped, batch[start : start + share], only_distillation)


def assert_equal_to_one_process(processes, model, batch, in_processes):
    """Compare the gradients of several processes with those of one; return the latter."""
    expected = gradients(model, batch)
    model.zero_grad()
    for memory in model.weighting.buffers():
        memory.zero_()
    first, *others = in_processes(processes, gradients_of_a_shard, model, batch)
    for name, gradient in expected.items():
        error = (first[name] - gradient).abs().max()
        assert error <= 5e-4 * gradient.abs().max() + 1e-6, name
        assert all(torch.equal(first[name], other[name]) for other in others)
    assert any("backbone" in name for name in expected)
    return expected


# Rules and norms reduce across processes for every family of detectors.
@pytest.mark.parametrize(
    "student, rule, normalize, norm, processes",
    [
        ("faster_rcnn", "ExponentialWeighting", False, "FrozenBN", 2),
        ("gfl", "ExponentialWeighting", False, "FrozenBN", 2),
        ("fcos", "ExponentialWeighting", False, "FrozenBN", 2),
        ("faster_rcnn", "ExponentialWeighting", True, "FrozenBN", 2),
        ("retinanet", "ExponentialWeighting", True, "FrozenBN", 4),
        ("faster_rcnn", "ExponentialWeighting", False, "naiveSyncBN", 2),
        ("retinanet", "RelativeWeighting", False, "FrozenBN", 2),
        ("faster_rcnn", "RelativeWeighting", False, "FrozenBN", 4),
        ("faster_rcnn", "StudentAwareWeighting", False, "FrozenBN", 2),
        ("gfl", "StudentAwareWeighting", False, "FrozenBN", 2),
    ],
)
def test_gradients_in_several_processes_equal_one(
    student, rule, normalize, norm, processes, student_model, make_batch, in_processes
):
    opts = ["MODEL.RESNETS.NORM", norm, "AID.NORMALIZE", normalize, "AID.WEIGHTING", rule]
    model, _ = student_model(student, opts=[*opts, *NON_LOCAL])
    for name, parameter in model.named_parameters():
        if name.endswith(".norm.weight") and "distillation" in name:  # no identities
            torch.nn.init.uniform_(parameter, 0.1, 0.3)
    batch = make_batch(NUM_INSTANCES)
    expected = assert_equal_to_one_process(processes, model, batch, in_processes)
    assert any("distillation" in name for name in expected)


@pytest.mark.parametrize("loss", ["FGD", "PKD", "CWD", "MGD", "FitNet"])
def test_gradients_of_other_losses_in_two_processes_equal_one(
    loss, student_model, make_batch, in_processes
):
    opts = ["MODEL.RESNETS.NORM", "FrozenBN", "DISTILLATION.LOSSES", [f"{loss}Loss"]]
    opts += ["DISTILLATION.SCALE", "rms", "DISTILLATION.MGD.WEIGHT", 1.0]
    for term in ("FOREGROUND", "BACKGROUND", "ATTENTION", "GLOBAL"):
        opts += [f"DISTILLATION.FGD.{term}_WEIGHT", 1.0]
    opts += ["DISTILLATION.MGD.MASKED_SHARE", 0.0]  # each process draws its own masks
    model, _ = student_model("faster_rcnn", opts=opts)
    assert_equal_to_one_process(2, model, make_batch(NUM_INSTANCES), in_processes)


@pytest.mark.parametrize("normalize", [False, True])
def test_gradients_with_two_teachers_in_two_processes_equal_one(
    normalize, student_model, further, make_batch, in_processes
):
    opts = [*further("retinanet"), "MODEL.RESNETS.NORM", "FrozenBN", "AID.NORMALIZE", normalize]
    model, _ = student_model("faster_rcnn", opts=[*opts, *NON_LOCAL])
    expected = assert_equal_to_one_process(2, model, make_batch(NUM_INSTANCES), in_processes)
    assert any("losses_1" in name for name in expected)


@pytest.mark.parametrize(
    "student, loss, normalize",
    [
        ("faster_rcnn", "ResponseLoss", False),
        ("retinanet", "ResponseLoss", True),
        ("gfl", "ResponseLoss", False),
        ("fcos", "ResponseLoss", True),
        ("retinanet", "CrossKDLoss", False),
    ],
)
def test_prediction_losses_in_two_processes_equal_one(
    student, loss, normalize, student_model, make_batch, in_processes
):
    opts = ["MODEL.RESNETS.NORM", "FrozenBN", "DISTILLATION.LOSSES", [loss]]
    opts += ["DISTILLATION.RESPONSE.MIN_SCORE", 0.005, "AID.NORMALIZE", normalize]
    model, _ = student_model(student, opts=opts)
    assert_equal_to_one_process(2, model, make_batch(NUM_INSTANCES), in_processes)


@pytest.mark.parametrize(
    "student, opts",
    [
        ("mask_rcnn", []),
        ("retinanet", []),
        ("gfl", []),
        ("fcos", []),
        ("fcos", ["DISTILLATION.LOSSES", ["CrossKDLoss"]]),
    ],
)
def test_process_without_boxes_has_no_unused_parameters(
    student, opts, student_model, make_batch, in_processes
):
    model, _ = student_model(student, opts=["MODEL.RESNETS.NORM", "FrozenBN", *opts])
    batch = make_batch((2, 1, 0, 0), masks=student == "mask_rcnn")
    first, second = in_processes(2, gradients_of_a_shard, model, batch, False)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert first.keys() == second.keys() == trained
    assert all(torch.isfinite(g).all() for g in first.values())
