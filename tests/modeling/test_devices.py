"""Losses, weights and teachers on a GPU, simulated by fake tensors."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, ImageList, Instances
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from aid.config import load_config
from aid.modeling.families import (
    DetectionQuality,
    PairedPredictions,
    PerInstanceLosses,
    Predictions,
    per_instance_losses,
)
from aid.modeling.losses import DISTILLATION_LOSS_REGISTRY, Context
from aid.modeling.teacher import Teacher
from aid.modeling.weighting import WEIGHTING_REGISTRY, TeacherMixing, TeacherStats, build_weighting

LEVELS = {"p3": ((8, 12), 8), "p4": ((4, 6), 16)}
COUNTS = (2, 0, 3)
GPU = "cuda"


@pytest.fixture
def cfg(repository):
    return load_config(f"{repository}/configs/Base-GFL.yaml")


@pytest.fixture
def fake():
    """Mode in which operations refuse mixed devices and any read of a tensor's values."""
    with FakeTensorMode():
        yield


class NoBlockingCopies(TorchDispatchMode):
    """Mode in which copies from the CPU to the GPU fail if they wait for the GPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            devices = {x.device.type for x in tree_leaves((args, result)) if torch.is_tensor(x)}
            assert devices == {result.device.type} or kwargs.get("non_blocking"), "blocking copy"
        return result


@pytest.mark.parametrize(
    "copy", [lambda x: x.new_tensor(3.0), lambda x: torch.full((2,), 1.0).to(x), torch.Tensor.cpu]
)
def test_blocking_copies_are_detected(copy, fake):
    with NoBlockingCopies(), pytest.raises(AssertionError, match="blocking copy"):
        copy(rand(3))


def rand(*shape):
    return torch.rand(*shape, device=GPU)


def predictions():
    *sides, cross = (Predictions(rand(9, 3), rand(9, 4), rand(9, 4, 17)) for _ in range(3))
    matched_gt = torch.randint(6, (9,), device=GPU)
    image = torch.randint(3, (9,), device=GPU)
    actual = PairedPredictions(
        *sides, "softmax", matched_gt, sum(COUNTS), image, matched_gt < 2, cross=cross
    )
    actual.set_weights({k: rand(5) for k in ("all", "cls", "box")}, rand(3))
    return actual


@pytest.mark.parametrize("name", sorted(k for k, _ in DISTILLATION_LOSS_REGISTRY))
def test_losses_stay_on_the_device_without_synchronization(name, cfg, fake):
    shapes = [{k: ShapeSpec(channels=c, stride=LEVELS[k][1]) for k in LEVELS} for c in (4, 6)]
    with torch.device(GPU):  # modules of fake tensors cannot be moved
        loss = DISTILLATION_LOSS_REGISTRY.get(name)(cfg, tuple(LEVELS), *shapes)
    if name == "MGDLoss":  # a generator that `to` does not move
        loss._random = torch.Generator()
    student, teacher, weights = (
        {k: rand(3, c, *size) for k, (size, _) in LEVELS.items()} for c in (4, 6, 1)
    )
    instances = [Instances((64, 96), gt_boxes=Boxes(rand(n, 4))) for n in COUNTS]
    context = Context(instances, {k: stride for k, (_, stride) in LEVELS.items()}, predictions())
    with NoBlockingCopies():
        actual = loss(student, teacher, weights, context)
    assert actual and all(value.device.type == GPU for value in actual.values())


# The base class handles granularity and background.
MAPS = [("instance", x) for x in ("mean", "loss", "one")]
MAPS += [(x, "mean") for x in ("level", "image", "none")]
RULES = sorted(k for k, _ in WEIGHTING_REGISTRY if k != "ClassWeighting")


@pytest.mark.parametrize(
    "name, granularity, background",
    [
        (x, *y)
        for x in RULES
        for y in MAPS
        if x == "ExponentialWeighting" or y in (MAPS[0], MAPS[3])
    ],
)
def test_weights_stay_on_the_device_without_synchronization(
    name, granularity, background, cfg, fake
):
    cfg.AID.WEIGHTING, cfg.AID.GRANULARITY, cfg.AID.BACKGROUND = name, granularity, background
    cfg.AID.NORMALIZE = True
    losses = PerInstanceLosses(
        tuple(LEVELS), {k: rand(5) for k in ("cls", "box")}, {"cls": rand(3, 2)}, rand(5, 2)
    )
    boxes = [rand(n, 4) for n in COUNTS]
    with torch.device(GPU):
        rules = [build_weighting(cfg) for _ in range(2)]
    mixing, weights = TeacherMixing(rules), []
    # Rules under study that compare student and teacher select levels by lists of indices.
    with nullcontext() if rules[0].requires_student else NoBlockingCopies():
        for rule in rules:
            stats = None
            if rule.requires_stats:
                classes = torch.randint(3, (5,), device=GPU)
                stats = TeacherStats(losses, classes, losses, DetectionQuality(rand(5), rand(5)))
            weights.append(rule(stats, boxes, LEVELS))
            weights[-1].components = rule.component_weights(stats, boxes)
        mixed = mixing(weights)
    for actual in mixed:
        tensors = [*actual.maps.values(), *vars(actual.components).values()]
        assert all(x.device.type == GPU for x in tensors)


@pytest.mark.parametrize("kind", ["gfl", "fcos"])
def test_dense_teacher_losses_need_no_synchronization(kind, tiny_config, fake, monkeypatch):
    """Other families use Detectron2's matcher, which synchronizes."""
    cfg = load_config(tiny_config(kind, ["MODEL.DEVICE", GPU]))
    with torch.device(GPU):
        teacher = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg).eval()
    shapes = teacher.backbone.output_shape()
    features = {k: rand(3, x.channels, 256 // x.stride, 384 // x.stride) for k, x in shapes.items()}
    images = ImageList(rand(3, 3, 256, 384), [(256, 384)] * 3)
    targets = []
    for n in COUNTS:
        classes = torch.randint(3, (n,), device=GPU)
        targets.append(Instances((256, 384), gt_boxes=Boxes(rand(n, 4)), gt_classes=classes))
    # Detectron2 makes its grid of anchors on the CPU, the student's as well.
    anchors = teacher.anchor_generator([features[k] for k in teacher.head_in_features])
    monkeypatch.setattr(teacher.anchor_generator, "forward", lambda maps: anchors)
    with NoBlockingCopies():
        actual = per_instance_losses(teacher, images, features, targets)
    tensors = [*actual.components.values(), *actual.background.values(), actual.level_share]
    assert all(x.device.type == GPU for x in tensors)


def test_missing_classes_are_found_without_synchronization(fake):
    teacher = SimpleNamespace(class_map=SimpleNamespace(unknown=[0, 2]))
    targets = [Instances((1, 1), gt_classes=torch.randint(3, (n,), device=GPU)) for n in COUNTS]
    with NoBlockingCopies():
        actual = Teacher.has_class(teacher, targets)
    assert actual.device.type == GPU and actual.shape == (5,)
