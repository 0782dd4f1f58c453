"""Device and precision of teachers, and of their outputs."""

import copy

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, ImageList, Instances
from torch._subclasses.fake_tensor import FakeTensorMode

from aid.config import load_config
from aid.modeling.families import (
    DetectionQuality,
    PredictionBatch,
    PredictionRequest,
    Predictions,
    dense,
    paired_predictions,
    two_stage,
)
from aid.modeling.placement import autocast, to_device
from aid.modeling.teacher import Teacher, build_teacher
from aid.utils.errors import AIDError

GPU = "cuda"
COUNTS = (2, 0, 3)
SIZE = (128, 192)


@pytest.fixture
def fake():
    """FakeTensorMode, in which operations refuse tensors on different devices."""
    with FakeTensorMode():
        yield


def build(kind, tiny_config, device="cpu"):
    cfg = load_config(tiny_config(kind, ["MODEL.DEVICE", device]))
    with torch.device(device):  # no module can be moved in FakeTensorMode
        return META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg).eval(), cfg


def instances(device="cpu"):
    return [
        Instances(
            SIZE,
            gt_boxes=Boxes(torch.rand(n, 4, device=device)),
            gt_classes=torch.randint(3, (n,), device=device),
        )
        for n in COUNTS
    ]


def test_nested_tensors_are_moved_without_needless_copies():
    x = torch.rand(2, 4)
    nested = {
        "list": [Boxes(x), Instances((1, 1), scores=x), ImageList(x, [(1, 1)])],
        "tuple": (DetectionQuality(x, x), Predictions(x, x), None, "name", 3),
    }
    (boxes, some, images), (quality, predictions, *rest) = to_device(
        nested, torch.device("meta")
    ).values()
    moved = [boxes.tensor, some.scores, images.tensor, quality.score, quality.iou]
    moved += [predictions.logits, predictions.boxes]
    assert all(y.is_meta for y in moved) and rest == [None, "name", 3]
    (boxes, *_), (quality, *_) = to_device(nested, x.device).values()
    assert boxes.tensor is x and quality.iou is x


@pytest.mark.parametrize("kind", ["gfl", "fcos"])
def test_losses_of_a_teacher_on_another_device_are_moved(kind, tiny_config, fake):
    detector, cfg = build(kind, tiny_config, GPU)
    teacher = Teacher(detector, cfg)
    teacher.stays = True
    teacher.follow(torch.device("cpu"))
    inputs = [{"image": torch.zeros(3, *SIZE)} for _ in COUNTS]
    view = teacher.view(inputs, SIZE, cfg.INPUT.FORMAT)
    assert all(x.device.type == GPU for x in view.features.values())
    losses = teacher.per_instance_losses(view, instances())
    moved = [*losses.components.values(), *losses.background.values(), losses.level_share]
    assert all(x.device.type == "cpu" for x in moved)
    assert all(x.device.type == GPU for output in losses.predictions for x in output)


@pytest.mark.parametrize("kind", ["retinanet", "gfl", "fcos"])
def test_dense_predictions_across_two_devices(kind, tiny_config, fake, monkeypatch):
    (teacher, _), (student, _) = build(kind, tiny_config, GPU), build(kind, tiny_config)
    samples = (torch.zeros(5, dtype=torch.long), torch.arange(5))
    monkeypatch.setattr(
        dense, "choose_samples", lambda matched_gt, *_: to_device(samples, matched_gt.device)
    )
    # Detectron2's matcher reads values, which fake tensors do not have.
    matched = torch.zeros(3, 5, dtype=torch.long, device=GPU)
    monkeypatch.setattr(dense, "match_anchors", lambda *_: type("M", (), {"matched_gt": matched}))
    features = {}
    for name, detector in (("teacher", teacher), ("student", student)):
        shapes, device = detector.backbone.output_shape(), detector.device
        features[name] = {
            k: torch.rand(3, x.channels, SIZE[0] // x.stride, SIZE[1] // x.stride, device=device)
            for k, x in shapes.items()
        }
    images = ImageList(torch.rand(3, 3, *SIZE, device=GPU), [SIZE] * 3)
    batch = PredictionBatch(images, features["teacher"], features["student"], instances(GPU))
    maps = [features["student"][level].requires_grad_() for level in student.head_in_features]
    batch.student_predictions, batch.student_branches = student.head(maps), {1: (maps, maps)}
    pairs = paired_predictions(teacher, student, PredictionRequest(cross_convs=1), batch)
    for side in (pairs.student, pairs.teacher, pairs.cross):
        assert side.logits.device.type == side.boxes.device.type == "cpu"
    assert pairs.matched_gt.device.type == pairs.image.device.type == "cpu"
    assert pairs.cross.boxes.requires_grad and not pairs.teacher.boxes.requires_grad


def test_two_stage_predictions_across_two_devices(tiny_config, fake, monkeypatch):
    (teacher, _), (student, _) = (build("faster_rcnn", tiny_config, x) for x in (GPU, "cpu"))

    def match(matcher, rois, truth, keep_negatives):
        number = sum(map(len, rois))
        return rois, torch.zeros(number, dtype=torch.long, device=GPU), None

    def predict(detector, features, rois, classes):
        tensors = [*(x.tensor for x in rois), classes, *features.values()]
        assert {x.device.type for x in tensors} == {detector.device.type}
        return Predictions(*(torch.rand(5, n, device=detector.device) for n in (4, 4)))

    monkeypatch.setattr(two_stage, "match_rois", match)
    monkeypatch.setattr(two_stage, "_predictions", predict)
    features = [{"p2": torch.rand(3, 8, 8, 8, device=x)} for x in (GPU, "cpu")]
    batch = PredictionBatch(None, *features, instances(GPU))
    pairs = paired_predictions(teacher, student, PredictionRequest(), batch)
    tensors = [pairs.teacher.logits, pairs.student.boxes, pairs.matched_gt, pairs.image]
    assert all(x.device.type == "cpu" for x in tensors)


def test_teacher_with_its_own_device_is_not_moved(student_config):
    meta = torch.device("meta")  # stands for any other device
    fixed = build_teacher(student_config("gfl", opts=["TEACHER.DEVICE", "cpu"]))
    fixed.follow(meta)
    assert fixed.detector.device.type == "cpu"
    following = build_teacher(student_config("gfl"))
    following.follow(meta)
    assert following.detector.device == meta


@pytest.mark.parametrize("name", ["cuda:99", "gpu", "meta"])
def test_unavailable_device_is_refused(name, student_config):
    with pytest.raises(AIDError, match=f"^TEACHER.DEVICE is '{name}', which torch cannot use here"):
        build_teacher(student_config("faster_rcnn", opts=["TEACHER.DEVICE", name]))


def test_unknown_precision_is_refused(student_config):
    with pytest.raises(AIDError, match="TEACHER.PRECISION is 'half': choose one of float32, bfl"):
        build_teacher(student_config("faster_rcnn", opts=["TEACHER.PRECISION", "half"]))


def view_and_losses(teacher, batch):
    view = teacher.view(batch, (64, 96), "RGB")
    return view, teacher.per_instance_losses(view, [x["instances"] for x in batch])


@pytest.mark.parametrize("kind", ["faster_rcnn", "retinanet", "gfl", "fcos"])
@pytest.mark.parametrize("precision, error", [("bfloat16", 0.05), ("float16", 0.01)])
def test_half_precision_approximates_float32(kind, precision, error, student_config, make_batch):
    single = build_teacher(student_config(kind))
    half = build_teacher(student_config(kind, opts=["TEACHER.PRECISION", precision]))
    batch = make_batch((2, 0, 3))
    (view, losses), (half_view, half_losses) = (view_and_losses(x, batch) for x in (single, half))
    for level, x in view.features.items():
        y = half_view.features[level]
        assert y.dtype == torch.float32 and not torch.equal(y, x)
        assert (y - x).abs().max() <= error * x.abs().max()
    for name, expected in losses.components.items():
        actual = half_losses.components[name]
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual, expected, rtol=5 * error, atol=0)
    assert all(p.dtype == torch.float32 for p in half.detector.parameters())


@pytest.mark.parametrize("kind", ["faster_rcnn", "gfl"])
def test_float32_teacher_ignores_mixed_precision_of_the_student(kind, student_config, make_batch):
    batch = make_batch()
    expected, losses = view_and_losses(build_teacher(student_config(kind)), batch)
    teacher = build_teacher(student_config(kind, opts=["TEACHER.PRECISION", "float32"]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual, actual_losses = view_and_losses(teacher, batch)
        default, _ = view_and_losses(build_teacher(student_config(kind)), batch)
    assert all(torch.equal(actual.features[k], x) for k, x in expected.features.items())
    assert all(torch.equal(actual_losses.components[k], x) for k, x in losses.components.items())
    assert all(x.dtype == torch.bfloat16 for x in default.features.values())


LOSSES = {
    "faster_rcnn": ["PKDLoss", "ResponseLoss"],
    "retinanet": ["PKDLoss", "ResponseLoss", "CrossKDLoss"],
}


@pytest.mark.parametrize("kind", LOSSES)
def test_student_losses_do_not_depend_on_the_teachers_precision(
    kind, student_model, make_batch, storage
):
    losses = {}
    for precision in ("", "float32", "bfloat16"):
        opts = ["TEACHER.PRECISION", precision, "DISTILLATION.LOSSES", LOSSES[kind]]
        model, _ = student_model(kind, opts=opts)
        torch.manual_seed(3)
        losses[precision] = model(make_batch())
        sum(losses[precision].values()).backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    for name, loss in losses[""].items():
        assert torch.equal(losses["float32"][name], loss)
        half = losses["bfloat16"][name]
        assert half.dtype == torch.float32 and half.isfinite()
        assert torch.equal(half, loss) == ("distill" not in name), name
        torch.testing.assert_close(half, loss, rtol=0.2, atol=0)


def test_gradients_through_a_teachers_head_do_not_underflow_in_float16(
    student_model, make_batch, storage
):
    gradients = []
    for precision in ("", "float16"):
        opts = ["TEACHER.PRECISION", precision, "DISTILLATION.LOSSES", ["CrossKDLoss"]]
        model, _ = student_model("gfl", opts=[*opts, "DISTILLATION.WEIGHT", 0.01])
        losses = model(make_batch())
        sum(x for name, x in losses.items() if "distill" in name).backward()
        gradients.append(model.backbone.fpn_output3.weight.grad)
    expected, actual = gradients
    torch.testing.assert_close(actual.norm(), expected.norm(), rtol=0.05, atol=0)


@pytest.mark.parametrize("kind", ["faster_rcnn", "retinanet"])
def test_teacher_predictions_use_the_teachers_precision(kind, student_model, make_batch, storage):
    opts = ["TEACHER.PRECISION", "float32", "DISTILLATION.LOSSES", ["ResponseLoss"]]
    model, _ = student_model(kind, opts=opts)
    predictions = []
    model.distillers[0].losses["ResponseLoss"].register_forward_pre_hook(
        lambda module, inputs: predictions.append(inputs[3].predictions)
    )
    for half in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            model(make_batch())
    single, mixed = predictions
    assert torch.equal(single.teacher.logits, mixed.teacher.logits)
    assert not torch.equal(single.student.logits, mixed.student.logits)


def test_autocast_without_a_precision_is_unchanged():
    cpu = torch.device("cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with autocast(cpu, None):
            assert torch.is_autocast_enabled("cpu")
        with autocast(cpu, torch.float32):
            assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("balance", [0.0, 5.0])
def test_copy_of_a_student_shares_only_the_teacher(balance, student_model, make_batch, storage):
    opts = ["DISTILLATION.BALANCE", balance, "DISTILLATION.LOSSES", ["ResponseLoss", "FitNetLoss"]]
    opts += ["DISTILLATION.ADAPT_EQUAL_WIDTHS", True]
    model, _ = student_model("faster_rcnn", opts=opts)
    batch = make_batch()
    sum(model(batch).values()).backward()  # the copy is made during training
    model.zero_grad()
    copied = copy.deepcopy(model)
    assert copied.teacher is model.teacher
    (original,), (distiller,) = model.distillers, copied.distillers
    assert distiller.losses is copied.distillation["losses"]
    assert distiller.losses is not original.losses
    assert {id(p) for p in copied.parameters()}.isdisjoint({id(p) for p in model.parameters()})
    expected, actual = [], []
    for student, losses in ((model, expected), (copied, actual)):
        torch.manual_seed(5)
        losses.append(student(batch))
    assert actual[0].keys() == expected[0].keys()
    assert all(torch.equal(actual[0][k], x) for k, x in expected[0].items())
