"""Cache of a teacher's feature maps and losses: what is read, computed and stored."""

import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from detectron2.structures import Boxes, Instances
from torch import nn

from aid.data.ignore_regions import GroundTruth
from aid.modeling import teacher as teacher_module
from aid.modeling import teacher_cache
from aid.modeling.teacher_cache import TeacherCache
from aid.utils.errors import AIDError


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3, stride=2)
        self.num_images = 0

    def forward(self, x):
        self.num_images += len(x)
        y = self.conv(x)
        return {"p3": y, "p4": y[..., ::2, ::2]}


@pytest.fixture
def network():
    return Network()


@pytest.fixture
def folder(tmp_path):
    return str(tmp_path / "cache")


def images(*seeds):
    return torch.stack(
        [torch.rand(3, 8, 12, generator=torch.Generator().manual_seed(s)) for s in seeds]
    )


def maps(cache, network, x):
    def compute(new):
        y = network(x[new])
        return [{level: y[level][n] for level in y} for n in range(len(new))]

    found = cache(cache.keys(x), compute)
    return {level: torch.stack([y[level] for y in found]) for level in found[0]}


@torch.no_grad()
def test_known_images_are_read_bit_for_bit(network, folder):
    first = maps(TeacherCache(folder, 1.0, network, ""), network, images(0, 1))
    again = maps(TeacherCache(folder, 1.0, network, ""), network, images(1, 0))
    assert network.num_images == 2
    for level in ("p3", "p4"):
        assert torch.equal(again[level], first[level].flip(0))


@torch.no_grad()
def test_anything_else_is_computed(network, folder):
    cache = TeacherCache(folder, 1.0, network, "")
    maps(cache, network, images(0))
    x = images(0)
    x[0, 0, 0, 0] += 1e-6
    maps(cache, network, x)  # other pixels
    maps(cache, network, nn.functional.pad(images(0), (0, 2)))  # another padding
    assert network.num_images == 3
    network.conv.bias += 1e-6
    actual = maps(TeacherCache(folder, 1.0, network, ""), network, images(0))  # other weights
    assert network.num_images == 4
    assert torch.equal(actual["p3"], network.conv(images(0)))
    maps(TeacherCache(folder, 1.0, network, "FUSE_TYPE: avg"), network, images(0))  # other settings
    network.num_images -= 1
    with torch.autocast("cpu", dtype=torch.bfloat16):  # another precision
        half = maps(TeacherCache(folder, 1.0, network, ""), network, images(0))
    assert network.num_images == 5 and half["p3"].dtype == torch.bfloat16


@torch.no_grad()
def test_only_new_images_of_a_batch_are_computed(network, folder):
    cache = TeacherCache(folder, 1.0, network, "")
    maps(cache, network, images(1))
    actual = maps(cache, network, images(0, 1, 2))
    assert network.num_images == 3
    torch.testing.assert_close(actual["p3"], network.conv(images(0, 1, 2)))
    again = maps(cache, network, images(2, 1, 0))
    assert network.num_images == 3
    assert torch.equal(again["p4"], actual["p4"].flip(0))


@torch.no_grad()
def test_full_cache_computes(network, folder, caplog):
    size = sum(x[0].nbytes for x in network(images(0)).values())
    for _ in range(2):  # the files of an earlier run count as well
        cache = TeacherCache(folder, (size + 100) / 2**30, network, "")
        for seed in (0, 1, 2):
            actual = maps(cache, network, images(seed))["p3"]
            assert torch.equal(actual, network.conv(images(seed)))
    assert len(os.listdir(folder)) == 1
    assert caplog.text.count("TEACHER.CACHE_GIB") == 2


@torch.no_grad()
def test_room_is_left_on_the_disk_for_checkpoints(network, folder, caplog, monkeypatch):
    usage = SimpleNamespace(free=2**30 - 1)
    monkeypatch.setattr(teacher_cache.shutil, "disk_usage", lambda folder: usage)
    maps(TeacherCache(folder, 1.0, network, ""), network, images(0, 1))
    assert os.listdir(folder) == [] and caplog.text.count("1 GiB free") == 1
    usage.free = 2**31
    maps(TeacherCache(folder, 1.0, network, ""), network, images(0, 1))
    assert len(os.listdir(folder)) == 2


@torch.no_grad()
def test_folder_that_cannot_be_written_any_more_costs_time_only(
    network, folder, caplog, file_limit
):
    removed = TeacherCache(folder, 1.0, network, "")
    os.rmdir(folder)
    for seed in (0, 1):
        assert torch.equal(maps(removed, network, images(seed))["p3"], network.conv(images(seed)))
    assert caplog.text.count("cannot be written (No such file") == 1
    on_full_disk = TeacherCache(folder, 1.0, network, "")
    with file_limit(100):
        maps(on_full_disk, network, images(0, 1))
    assert os.listdir(folder) == [] and caplog.text.count("cannot be written (") == 2


@torch.no_grad()
def test_limit_holds_for_several_processes_together(network, folder, monkeypatch):
    monkeypatch.setattr(teacher_cache, "COUNT", 1)
    limit = 8000
    caches = [TeacherCache(folder, limit / 2**30, network, "") for _ in range(4)]
    for seed in range(12):
        maps(caches[seed % 4], network, images(seed))
    assert 4000 < sum(x.stat().st_size for x in os.scandir(folder)) < limit + 3000


@torch.no_grad()
@pytest.mark.parametrize("content", [None, [], "text", {}, {"p3": 1}])
def test_damaged_file_is_computed_anew(content, network, folder):
    cache = TeacherCache(folder, 1.0, network, "")
    maps(cache, network, images(0))
    (name,) = os.listdir(folder)
    path = os.path.join(folder, name)
    if content is None:
        os.truncate(path, 100)
    else:
        torch.save(content, path)
    os.symlink("gone", os.path.join(folder, "link"))
    cache = TeacherCache(folder, 1.0, network, "")
    maps(cache, network, images(0))
    maps(cache, network, images(0))
    assert network.num_images == 2


def test_unusable_folder_is_refused(network, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(AIDError, match="TEACHER.CACHE: .*file.*; name a folder"):
        TeacherCache(str(tmp_path / "file" / "cache"), 1.0, network, "")
    (tmp_path / "features").mkdir()  # as tools/study.py makes beside a teacher
    TeacherCache(str(tmp_path), 1.0, network, "")
    with pytest.raises(AIDError, match="TEACHER.CACHE_GIB is -1.0"):
        TeacherCache(str(tmp_path), -1.0, network, "")


@pytest.mark.parametrize("kind", ["faster_rcnn", "gfl"])
def test_student_has_the_same_losses_and_gradients(
    kind, student_model, make_batch, storage, folder, monkeypatch
):
    batch, found = make_batch((2, 0)), []
    for opts in ([], ["TEACHER.CACHE", folder], ["TEACHER.CACHE", folder]):
        model, _ = student_model(kind, opts=opts)
        if len(found) == 2:  # neither backbone nor heads run again
            monkeypatch.setattr(teacher_module, "per_instance_losses", None)
            model.teacher.detector.backbone.forward = None
        torch.manual_seed(0)
        losses = model(batch)
        sum(losses.values()).backward()
        gradients = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
        found.append({**losses, **gradients})
    assert len(os.listdir(folder)) == 4
    for name, x in found[0].items():
        assert torch.equal(found[1][name], x) and torch.equal(found[2][name], x), name


def test_losses_for_predictions_are_computed(student_model, make_batch, storage, folder):
    batch, found = make_batch((2, 1)), []
    for opts in ([], ["TEACHER.CACHE", folder], ["TEACHER.CACHE", folder]):
        losses = ["DISTILLATION.LOSSES", ["ResponseLoss"]]
        model, _ = student_model("gfl", opts=[*losses, *opts])
        found.append(model(batch))
    assert len(os.listdir(folder)) == 2  # feature maps only
    assert found[0] == found[1] == found[2]


def test_losses_of_other_labels_are_computed(student_model, make_batch, folder):
    teacher = student_model("retinanet", opts=["TEACHER.CACHE", folder])[0].teacher
    batch = make_batch((2, 1))
    first, second = (x["instances"] for x in batch)
    fields = second.get_fields()
    view = teacher.view(batch, (64, 96), "BGR")

    def check(label, num_new, background=True):
        num_files = len(os.listdir(folder))
        actual = teacher.per_instance_losses(view, [first, label], background)
        assert len(os.listdir(folder)) == num_files + num_new
        uncached = replace(view, keys=[])
        expected = teacher.per_instance_losses(uncached, [first, label], background)
        torch.testing.assert_close(actual.components, expected.components)
        torch.testing.assert_close(actual.background, expected.background)
        torch.testing.assert_close(actual.level_share, expected.level_share)

    check(second, 2)
    check(second, 0)
    box = Boxes(second.gt_boxes.tensor + 1)
    check(Instances(second.image_size, **{**fields, "gt_boxes": box}), 1)
    check(Instances(second.image_size, **{**fields, "gt_classes": 2 - second.gt_classes}), 1)
    check(GroundTruth(second.image_size, Boxes(torch.tensor([[0.0, 0, 20, 20]])), **fields), 1)
    check(second, 2, background=False)
