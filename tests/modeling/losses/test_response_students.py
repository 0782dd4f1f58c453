"""Students distilled by their teacher's predictions, built from a config."""

import copy

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from aid.utils.errors import AIDError

KINDS = ["faster_rcnn", "mask_rcnn", "retinanet", "gfl", "fcos"]
FAMILIES = ["faster_rcnn", "retinanet", "gfl", "fcos"]
LOSSES = ["DISTILLATION.LOSSES", ["ResponseLoss"]]
CLS, BOX = "loss_distill_response_cls", "loss_distill_response_box"
# Scores of random weights are low: this threshold selects many anchors.
OPTS = [*LOSSES, "DISTILLATION.RESPONSE.MIN_SCORE", 0.005]


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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_instances", [(0, 1), (0, 0)])
def test_images_without_instances_have_finite_losses(
    kind, num_instances, student_model, make_batch
):
    model, _ = student_model(kind, opts=OPTS)
    losses, gradients = step(model, make_batch(num_instances, masks=kind == "mask_rcnn"))
    assert all(v.isfinite() for v in losses.values())
    for name, gradient in gradients.items():
        assert gradient is not None or "mask_head" in name, name
    if num_instances == (0, 0):
        assert losses[BOX] == 0 and losses[CLS] > 0  # of predictions above the teacher's min_score


@pytest.mark.parametrize("kind", KINDS)
def test_lambda_0_is_plain_detectron2_bit_for_bit(kind, student_model, tiny_model, make_batch):
    batch = make_batch((2, 0, 3), masks=kind == "mask_rcnn")
    model, _ = student_model(kind, opts=[*OPTS, "DISTILLATION.WEIGHT", 0.0])
    plain = tiny_model(kind).train()
    for _ in range(2):  # the second step depends on running means of the first
        expected, gradients = step(plain, batch)
        expected_next = torch.rand(1)
        actual, actual_gradients = step(model, batch)
        assert torch.equal(torch.rand(1), expected_next)
        assert all(torch.equal(actual[k], v) for k, v in expected.items())
        assert all(torch.equal(actual_gradients[k], v) for k, v in gradients.items())
        assert all(v == 0 for v in distilled(actual).values())
        buffers = dict(model.named_buffers())
        assert all(torch.equal(buffers[k], v) for k, v in plain.named_buffers())


@pytest.mark.parametrize("kind", FAMILIES)
def test_terms_of_a_student_equal_to_its_teacher_are_zero(kind, student_model, make_batch):
    model, _ = student_model(kind, opts=OPTS)
    model.load_state_dict(model.teacher.detector.state_dict(), strict=False)
    for norm in model.modules():  # the student would normalize by batch statistics
        if isinstance(norm, nn.BatchNorm2d):
            norm.eval()
    losses, gradients = step(model, make_batch())
    assert all(v.abs() < 1e-6 for v in distilled(losses).values())
    assert all(g.isfinite().all() for g in gradients.values() if g is not None)


@pytest.mark.parametrize("kind", FAMILIES)
def test_training_halves_every_term(kind, student_model, make_batch):
    model, _ = student_model(kind, opts=[*OPTS, "AID.GRANULARITY", "none"])
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
    assert all(values[-1][k] < 0.5 * v for k, v in values[0].items())


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


@pytest.mark.parametrize("kind", ["faster_rcnn", "retinanet"])
def test_alpha_0_is_plain_distillation(kind, student_model, make_batch):
    plain, _ = student_model(kind, opts=[*OPTS, "AID.GRANULARITY", "none"])
    expected, gradients = step(plain, make_batch())
    alpha_0, _ = student_model(kind, opts=[*OPTS, "AID.ALPHA", 0.0])
    actual, actual_gradients = step(alpha_0, make_batch())
    assert all(torch.equal(actual[k], v) for k, v in expected.items())
    assert all(torch.equal(actual_gradients[k], v) for k, v in gradients.items())


@pytest.mark.parametrize("kind", ["faster_rcnn", "retinanet"])
def test_terms_are_linear_in_a_constant_weight(kind, student_model, make_batch):
    plain, _ = student_model(kind, opts=[*OPTS, "AID.GRANULARITY", "none"])
    constant = ["AID.WEIGHTING", "ConstantWeighting", "AID.CONSTANT", 0.25]
    weighted, _ = student_model(kind, opts=[*OPTS, *constant])
    expected, actual = (distilled(step(x, make_batch())[0]) for x in (plain, weighted))
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], 0.25 * value)


@pytest.mark.parametrize("kind", ["faster_rcnn", "retinanet"])
def test_response_loss_combines_with_feature_losses(kind, student_model, make_batch):
    losses = ["AttentionGuidedLoss", "NonLocalLoss", "ResponseLoss"]
    opts = [*OPTS, "DISTILLATION.LOSSES", losses, "AID.NORMALIZE", True]
    model, _ = student_model(kind, opts=opts)
    actual, _ = step(model, make_batch((2, 0, 3)))
    assert all(v.isfinite() and v > 0 for v in distilled(actual).values())
    assert len(distilled(actual)) == 6


@pytest.mark.parametrize("kind", ["retinanet", "gfl", "fcos"])
@pytest.mark.parametrize("granularity", ["none", "instance"])
def test_dense_heads_run_once_per_step(kind, granularity, student_model, make_batch):
    model, _ = student_model(kind, opts=[*OPTS, "AID.GRANULARITY", granularity])
    student_calls, teacher_calls = calls(model.head), calls(model.teacher.detector.head)
    step(model, make_batch())
    assert len(student_calls) == len(teacher_calls) == 1


@pytest.mark.parametrize("kind", FAMILIES)
def test_losses_are_computed_in_float32_under_amp(kind, student_model, make_batch):
    model, _ = student_model(kind, opts=OPTS)
    with EventStorage(), torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(make_batch())
    terms = distilled(losses)
    assert all(v.dtype == torch.float32 and v.isfinite() and v > 0 for v in terms.values())
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    "student, teacher, loss, message",
    [
        ("retinanet", "faster_rcnn", "ResponseLoss", "ResponseLoss needs .* is a AIDRetinaNet"),
        ("faster_rcnn", "retinanet", "ResponseLoss", "the student is a AIDGeneralizedRCNN"),
        ("faster_rcnn", "cascade_rcnn", "ResponseLoss", "the teacher is a CascadeROIHeads"),
        ("retinanet", "retinanet", "LocalisationLoss", "LocalisationLoss needs heads that predict"),
        ("fcos", "gfl", "LocalisationLoss", "LocalisationLoss needs .* the student is a AIDFCOS"),
        ("gfl", "fcos", "ResponseLoss", "the teacher is a FCOS, the student is a AIDGFL"),
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
        ("ResponseLoss", "RESPONSE.TEMPERATURE", -1.0),
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
