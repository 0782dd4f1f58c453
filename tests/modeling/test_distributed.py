"""Two processes with half the batch each have the gradients of one with the whole batch."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch.nn.parallel import DistributedDataParallel

NUM_INSTANCES = (2, 0, 3, 1)  # one image is empty; in another test a whole process is


def gradients(model, batch, only_distillation=True):
    with EventStorage(19):
        losses = model(batch)
    wanted = {k: v for k, v in losses.items() if "distill" in k or not only_distillation}
    sum(wanted.values()).backward()
    student = getattr(model, "module", model)
    return {k: p.grad for k, p in student.named_parameters() if p.grad is not None}


def work(rank, model, batch, folder, only_distillation):
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    comm.create_local_process_group(2)
    half = batch[:2] if rank == 0 else batch[2:]
    # Distillation alone leaves the heads without gradient, which is not DDP's normal case.
    wrapped = DistributedDataParallel(
        model, broadcast_buffers=False, find_unused_parameters=only_distillation
    )
    torch.save(gradients(wrapped, half, only_distillation), f"{folder}/{rank}.pth")
    dist.destroy_process_group()


def in_two_processes(model, batch, folder, only_distillation=True):
    arguments = (model, batch, str(folder), only_distillation)
    mp.start_processes(work, arguments, nprocs=2, start_method="fork")
    return [torch.load(folder / f"{rank}.pth") for rank in range(2)]


@pytest.mark.parametrize("student", ["faster_rcnn", "retinanet"])
@pytest.mark.parametrize(
    "rule, normalize",
    [
        ("ExponentialWeighting", False),
        ("ExponentialWeighting", True),
        ("RelativeWeighting", False),
        ("StudentAwareWeighting", False),
    ],
)
def test_half_the_batch_in_each_of_two(
    student, rule, normalize, student_model, make_batch, tmp_path
):
    opts = ["MODEL.RESNETS.NORM", "FrozenBN", "AID.NORMALIZE", normalize, "AID.WEIGHTING", rule]
    model, _ = student_model(student, opts=opts)
    batch = make_batch(NUM_INSTANCES)
    expected = gradients(model, batch)
    model.zero_grad()
    for memory in model.weighting.buffers():
        memory.zero_()
    first, second = in_two_processes(model, batch, tmp_path)
    for name, gradient in expected.items():
        torch.testing.assert_close(first[name], gradient, rtol=1e-3, atol=1e-6, msg=name)
        assert torch.equal(first[name], second[name])
    assert any("distillation" in name for name in expected)
    assert any("backbone" in name for name in expected)


@pytest.mark.parametrize("student", ["faster_rcnn", "retinanet"])
def test_no_unused_parameters_where_a_process_has_no_box(
    student, student_model, make_batch, tmp_path
):
    model, _ = student_model(student, opts=["MODEL.RESNETS.NORM", "FrozenBN"])
    batch = make_batch((2, 1, 0, 0))
    first, second = in_two_processes(model, batch, tmp_path, only_distillation=False)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert first.keys() == second.keys() == trained
    assert all(torch.isfinite(g).all() for g in first.values())
