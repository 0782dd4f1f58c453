"""Students distilled by their teacher's predictions, built from a config."""

import copy

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from aid.utils.errors import AIDError

DENSE = ["retinanet", "gfl", "fcos"]
FAMILIES = ["faster_rcnn", *DENSE]
KINDS = ["mask_rcnn", *FAMILIES]
# Student and loss.
STUDENTS = [(kind, "ResponseLoss") for kind in KINDS] + [(kind, "CrossKDLoss") for kind in DENSE]
CLS, BOX = "loss_distill_response_cls", "loss_distill_response_box"
CROSS_CLS, CROSS_BOX = "loss_distill_cross_cls", "loss_distill_cross_box"
# Scores of random weights are low: this threshold selects many anchors.
MIN_SCORE = ["DISTILLATION.RESPONSE.MIN_SCORE", 0.005]
OPTS = [*MIN_SCORE, "DISTILLATION.LOSSES", ["ResponseLoss"]]
CROSS = [*MIN_SCORE, "DISTILLATION.LOSSES", ["CrossKDLoss"]]


def step(model, batch, seed=5):
    """Losses and gradients of one step whose random numbers start at ``seed``."""
    torch.manual_seed(seed)
    model.zero_grad()
    with EventStorage(), torch.jit.optimized_execution(False):
        losses = model(copy.deepcopy(batch))
        sum(losses.values()).backward()
    return losses, {k: p.grad for k, p in model.named_parameters()}


def distilled(losses):
    return {k: v for k, v in losses.items() if "distill" in k}


@pytest.fixture
def build(student_model):
    """A function (kind, loss, opts) -> a student; for CrossKD the teacher's head is varied."""

    def make(kind, loss, opts=()):
        model, _ = student_model(kind, opts=[*MIN_SCORE, "DISTILLATION.LOSSES", [loss], *opts])
        return with_varied_head(model) if loss == "CrossKDLoss" else model

    return make


def with_varied_head(model):
    """Initialize the teacher's head so that predictions differ between cells."""
    torch.manual_seed(23)
    for module in model.teacher.detector.head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.2)
    return model


def calls(module):
    """A list with one item for each call of the module."""
    seen = []
    module.register_forward_hook(lambda *args: seen.append(1))
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_heads_get_gradients_from_predictions_alone(kind, student_model, make_batch):
    model, _ = student_model(kind, opts=OPTS)
    batch = make_batch((2, 0, 3), masks=kind == "mask_rcnn")
    with EventStorage():
        terms = distilled(model(batch))
    assert set(terms) == {CLS, BOX} and all(v > 0 and v.isfinite() for v in terms.values())
    if kind in ("retinanet", "gfl", "fcos"):
        classes, boxes = model.head.cls_score.weight, model.head.bbox_pred.weight
    else:
        predictor = model.roi_heads.box_predictor
        classes, boxes = predictor.cls_score.weight, predictor.bbox_pred.weight
    for name, trained, other in ((CLS, classes, boxes), (BOX, boxes, classes)):
        model.zero_grad()
        terms[name].backward(retain_graph=True)
        assert trained.grad.isfinite().all() and trained.grad.abs().sum() > 0
        assert other.grad is None or (other.grad == 0).all()
        assert model.backbone.fpn_lateral4.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.teacher.detector.parameters())


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("component, term, other", [("cls", CLS, BOX), ("box", BOX, CLS)])
def test_larger_teacher_loss_reduces_only_the_matching_term(
    kind, component, term, other, student_model, make_batch, monkeypatch
):
    model, _ = student_model(kind, opts=[*OPTS, "AID.ALPHA", 1.0, "AID.BACKGROUND", "one"])
    (distiller,) = model.distillers
    original, predictions = model.teacher.per_instance_losses, distiller.predictions
    seen = []

    def worse(*args):
        losses = original(*args)
        losses.components[component][1] += 3
        return losses

    monkeypatch.setattr(
        distiller, "predictions", lambda *a: seen.append(predictions(*a)) or seen[-1]
    )
    before, _ = step(model, make_batch())
    monkeypatch.setattr(model.teacher, "per_instance_losses", worse)
    after, _ = step(model, make_batch())
    for name in ("cls", "box"):
        changed = seen[1].weights[name] < seen[0].weights[name]
        same = seen[1].weights[name] == seen[0].weights[name]
        assert torch.equal(changed, (seen[0].matched_gt == 1) & (name == component))
        assert (changed | same).all()
    assert after[term] < before[term] and torch.equal(after[other], before[other])


def test_teacher_without_finite_losses_gives_zero_terms(student_model, make_batch, monkeypatch):
    model, _ = student_model("retinanet", opts=OPTS)
    original = model.teacher.per_instance_losses

    def broken(*args):
        losses = original(*args)
        for values in (*losses.components.values(), *losses.background.values()):
            values.fill_(torch.nan)
        return losses

    monkeypatch.setattr(model.teacher, "per_instance_losses", broken)
    losses, gradients = step(model, make_batch())
    assert losses[CLS] == 0 and losses[BOX] == 0
    assert all(g.isfinite().all() for g in gradients.values())


@pytest.mark.parametrize(
    "kind, granularity", [("retinanet", "none"), ("gfl", "instance"), ("fcos", "instance")]
)
def test_dense_heads_run_once_per_step(kind, granularity, student_model, make_batch):
    model, _ = student_model(kind, opts=[*OPTS, "AID.GRANULARITY", granularity])
    student_calls, teacher_calls = calls(model.head), calls(model.teacher.detector.head)
    step(model, make_batch())
    assert len(student_calls) == len(teacher_calls) == 1


@pytest.mark.parametrize(
    "student, teacher, loss, message",
    [
        ("retinanet", "faster_rcnn", "ResponseLoss", "ResponseLoss needs .* is a AIDRetinaNet"),
        ("retinanet", "retinanet", "LocalisationLoss", "LocalisationLoss needs heads that predict"),
    ],
)
def test_incompatible_pairs_are_refused_at_build_time(
    student, teacher, loss, message, student_config
):
    cfg = student_config(student, teacher, ["DISTILLATION.LOSSES", [loss]])
    with pytest.raises(AIDError, match=message):
        build_model(cfg).build_distillation(cfg)


@pytest.mark.parametrize(
    "loss, key, value",
    [
        ("ResponseLoss", "RESPONSE.TEMPERATURE", 0.0),
        ("AttentionGuidedLoss", "ATTENTION.TEMPERATURE", -1.0),
        ("CWDLoss", "CWD.TEMPERATURE", 0.0),
        ("FGDLoss", "FGD.TEMPERATURE", float("inf")),
        ("LocalisationLoss", "LOCALISATION.TEMPERATURE", float("nan")),
        ("ResponseLoss", "RESPONSE.NUM_ROIS", -1),
        ("ResponseLoss", "RESPONSE.MIN_SCORE", -0.1),
    ],
)
def test_invalid_values_are_refused(loss, key, value, student_config):
    opts = ["DISTILLATION.LOSSES", [loss], f"DISTILLATION.{key}", value]
    cfg = student_config("faster_rcnn", opts=opts)
    with pytest.raises(AIDError, match=f"DISTILLATION.{key} is {value}: it must be"):
        build_model(cfg).build_distillation(cfg)


def test_running_statistics_exclude_the_teachers_proposals(student_model, make_batch):
    """ResponseLoss runs the student's box head again, on the teacher's proposals."""
    head = {"NAME": "FastRCNNConvFCHead", "NUM_CONV": 1, "CONV_DIM": 8, "NUM_FC": 1, "NORM": "BN"}
    opts = [x for k, v in head.items() for x in (f"MODEL.ROI_BOX_HEAD.{k}", v)]
    actual = []
    for loss in ("FitNetLoss", "ResponseLoss"):
        model, _ = student_model("faster_rcnn", opts=[*opts, "DISTILLATION.LOSSES", [loss]])
        torch.manual_seed(0)
        with EventStorage():
            model(make_batch())
        norm = model.roi_heads.box_head.conv1.norm
        actual.append(torch.cat([norm.running_mean, norm.running_var]))
        assert norm.momentum > 0
    assert torch.equal(*actual)


@pytest.mark.parametrize("kind, loss", STUDENTS)
def test_images_without_instances_have_finite_losses(kind, loss, build, make_batch):
    model = build(kind, loss)
    for num_instances in ((0, 1), (0, 0)):
        losses, gradients = step(model, make_batch(num_instances, masks=kind == "mask_rcnn"))
        assert all(v.isfinite() for v in losses.values())
        for name, gradient in gradients.items():
            assert "mask_head" in name or gradient.isfinite().all(), name
    box, cls = (v for _, v in sorted(distilled(losses).items()))
    assert box == 0 and cls > 0  # of predictions above the teacher's min_score


@pytest.mark.parametrize(
    "kind, loss, limit",
    [
        ("faster_rcnn", "ResponseLoss", 0.5),
        ("gfl", "ResponseLoss", 0.5),
        ("gfl", "CrossKDLoss", 0.7),
    ],
)
def test_training_reduces_every_term(kind, loss, limit, build, make_batch):
    model = build(kind, loss, ["AID.GRANULARITY", "none"])
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    values = []
    for _ in range(40):
        torch.manual_seed(0)
        with EventStorage():
            terms = distilled(model(make_batch()))
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
        values.append({k: v.item() for k, v in terms.items()})
    assert all(values[-1][k] < limit * v for k, v in values[0].items()), (values[0], values[-1])


@pytest.mark.parametrize("kind, loss", STUDENTS[1:])
def test_losses_are_computed_in_float32_under_amp(kind, loss, build, make_batch):
    model = build(kind, loss)
    with EventStorage(), torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(make_batch())
    terms = distilled(losses)
    assert all(v.dtype == torch.float32 and v.isfinite() and v > 0 for v in terms.values())
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


# --- CrossKD


@pytest.mark.parametrize("granularity", ["none", "instance"])
def test_heads_run_once_and_teacher_norms_are_unchanged(granularity, student_model, make_batch):
    key = "MODEL.RETINANET.NORM"
    opts = [*CROSS, key, "BN", "AID.GRANULARITY", granularity]
    model, _ = student_model("retinanet", opts=opts)
    convs = []
    model.head.cls_subnet[0].register_forward_hook(lambda *args: convs.append(1))
    teacher = model.teacher.detector
    before = copy.deepcopy(teacher.state_dict())
    step(model, make_batch())
    assert len(convs) == 5  # once on each level
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    norms = [x for x in model.head.modules() if hasattr(x, "_pos")]
    assert len(norms) == 2 and all(x._pos == 0 for x in norms)


def test_crosskd_combines_with_other_losses(student_model, make_batch):
    names = ["CrossKDLoss", "LocalisationLoss", "ResponseLoss", "AttentionGuidedLoss"]
    model, _ = student_model("gfl", opts=[*CROSS, "DISTILLATION.LOSSES", names])
    losses, gradients = step(model, make_batch())
    assert len(distilled(losses)) == 8
    assert all(v > 0 for v in distilled(losses).values())
    assert all(g.isfinite().all() for g in gradients.values())


@pytest.mark.parametrize(
    "kind, key, value, message",
    [
        ("retinanet", "CROSS_KD.NUM_CONVS", -1, "NUM_CONVS is -1: it must be 0 or more"),
        ("retinanet", "CROSS_KD.NUM_CONVS", 2, "NUM_CONVS is 2: a branch of the teacher's head"),
        ("gfl", "RESPONSE.MIN_SCORE", 1.5, "MIN_SCORE is 1.5: it must be in 0 to 1"),
        ("faster_rcnn", "CROSS_KD.NUM_CONVS", 1, "CrossKDLoss needs a RetinaNet, GFL or FCOS"),
    ],
)
def test_invalid_crosskd_is_refused_at_build_time(kind, key, value, message, student_config):
    cfg = student_config(kind, opts=[*CROSS, f"DISTILLATION.{key}", value])
    with pytest.raises(AIDError, match=message):
        build_model(cfg).build_distillation(cfg)
