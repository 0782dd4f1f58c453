"""CrossKD: known values, gradients and students trained with it."""

import copy
import math

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from aid.modeling.losses import CrossKDLoss
from aid.utils.errors import AIDError

CLS, BOX = "loss_distill_cross_cls", "loss_distill_cross_box"
CONFIDENT, UNIFORM = [math.log(3), 0.0], [0.0, 0.0]
# Student score 1/2, teacher score 3/4.
FOCAL = 0.25 * math.log(2)
# Divergence of (3/4, 1/4) from (1/2, 1/2).
DIVERGENCE = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
SQUARE, SHIFTED = [0.0, 0, 2, 2], [1.0, 0, 3, 2]


@pytest.fixture
def make_cross(make_context):
    """Like make_context, with cross-head predictions in place of the student's."""

    def make(cross, *args, **kwargs):
        context = make_context(cross, *args, activation="sigmoid", **kwargs)
        predictions = context.predictions
        predictions.cross, predictions.student = predictions.student, None
        return context

    return make


def loss(context, cls_weight=1.0, box_weight=1.0):
    module = CrossKDLoss(num_convs=1, cls_weight=cls_weight, box_weight=box_weight, min_score=1.0)
    return module({}, {}, {}, context)


def both(logits, boxes):
    return {"logits": torch.tensor(logits), "boxes": torch.tensor(boxes)}


def test_known_values(make_cross):
    # Two samples of an instance and one of background, on two images of three.
    cross = both([UNIFORM] * 3, [SQUARE] * 3)
    teacher = both([CONFIDENT, UNIFORM, CONFIDENT], [SHIFTED, SQUARE, SHIFTED])
    actual = loss(make_cross(cross, teacher, [0, 0, -1], [0, 0, 1], num_images=3), 2.0, 3.0)
    assert actual[CLS].item() == pytest.approx(2 * (FOCAL / 2 + FOCAL) / 3)
    # Intersection 2, union 6, hull 6.
    assert actual[BOX].item() == pytest.approx(3 * (1 - 2 / 6) / 2 / 3)


def test_box_term_compares_distributions_if_present(make_cross):
    cross = {**both([UNIFORM], [SQUARE]), "distributions": torch.tensor([[UNIFORM] * 4])}
    sides = torch.tensor([[CONFIDENT, UNIFORM, UNIFORM, CONFIDENT]])
    teacher = {**both([UNIFORM], [SHIFTED]), "distributions": sides}
    actual = loss(make_cross(cross, teacher, [0], [0]))
    assert actual[BOX].item() == pytest.approx(DIVERGENCE / 2)


def test_weights_affect_only_their_sample_and_term(make_cross):
    cross, teacher = both([UNIFORM] * 2, [SQUARE] * 2), both([CONFIDENT] * 2, [SHIFTED] * 2)
    sides = cross, teacher, [0, 1], [0, 0]
    full = loss(make_cross(*sides))
    less_cls = loss(make_cross(*sides, cls=[1.0, 0.5]))
    less_box = loss(make_cross(*sides, box=[0.25, 1.0]))
    torch.testing.assert_close(less_cls[CLS], 0.75 * full[CLS])
    torch.testing.assert_close(less_box[BOX], 0.625 * full[BOX])
    assert torch.equal(less_cls[BOX], full[BOX]) and torch.equal(less_box[CLS], full[CLS])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_teacher_predictions_are_ignored(bad, make_cross):
    cross = {k: x.requires_grad_() for k, x in both([UNIFORM] * 2, [SQUARE] * 2).items()}
    teacher = both([CONFIDENT, [bad, 0.0]], [SHIFTED, [0.0, bad, 1, 1]])
    actual = loss(make_cross(cross, teacher, [0, 1], [0, 0]))
    assert actual[CLS].item() == pytest.approx(FOCAL / 2)
    assert actual[BOX].item() == pytest.approx((1 - 2 / 6) / 2)
    sum(actual.values()).backward()
    assert all(x.grad[0].abs().sum() > 0 and (x.grad[1] == 0).all() for x in cross.values())


def test_loss_is_zero_for_equal_predictions_or_no_samples(make_cross):
    cross = {k: x.requires_grad_() for k, x in both([CONFIDENT], [SQUARE]).items()}
    actual = loss(make_cross(cross, both([CONFIDENT], [SQUARE]), [0], [0]))
    sum(actual.values()).backward()
    assert actual[CLS] == actual[BOX] == 0 and all(x.grad.isfinite().all() for x in cross.values())
    cross = {"logits": torch.zeros(0, 2, requires_grad=True)}
    cross["boxes"] = torch.zeros(0, 4, requires_grad=True)
    actual = loss(make_cross(cross, {}, [], [], num_images=2))
    assert actual[CLS] == actual[BOX] == 0
    sum(actual.values()).backward()  # DDP needs the graph


KINDS = ["retinanet", "gfl", "fcos"]
KEYS = {"retinanet": "MODEL.RETINANET", "gfl": "MODEL.GFL", "fcos": "MODEL.FCOS"}
# Scores of random weights are low: this threshold selects many anchors.
OPTS = ["DISTILLATION.LOSSES", ["CrossKDLoss"], "DISTILLATION.RESPONSE.MIN_SCORE", 0.005]
CONSTANT = ["AID.WEIGHTING", "ConstantWeighting", "AID.CONSTANT"]


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


def with_varied_head(model):
    """Initialize the teacher's head so that predictions differ between cells."""
    torch.manual_seed(23)
    for module in model.teacher.detector.head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.2)
    return model


def copy_teacher(model):
    """Copy the teacher's weights; norms use their running statistics."""
    model.load_state_dict(model.teacher.detector.state_dict(), strict=False)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eval()


def parameters_with_gradient(loss, model):
    """Names of the parameters with a gradient that is not 0."""
    model.zero_grad()
    loss.backward(retain_graph=True)
    grads = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    assert all(g.isfinite().all() for g in grads.values())
    return {k for k, g in grads.items() if g.abs().sum() > 0}


@pytest.mark.parametrize("kind", KINDS)
def test_only_layers_before_the_cut_have_gradients(kind, student_model, make_batch):
    """The first 2 of 3 convolutions of each branch learn from its own term, and the backbone."""
    model, _ = student_model(kind, opts=[*OPTS, f"{KEYS[kind]}.NUM_CONVS", 3])
    with_varied_head(model)
    with EventStorage():
        terms = distilled(model(make_batch((2, 0, 3))))
    assert set(terms) == {CLS, BOX} and all(v > 0 and v.isfinite() for v in terms.values())
    for name, branch in ((CLS, "cls_subnet"), (BOX, "bbox_subnet")):
        actual = parameters_with_gradient(terms[name], model)
        head = {k for k in actual if k.startswith("head.")}
        assert {f"head.{branch}.{i}.weight" for i in (0, 2)} == {
            k for k in head if k.endswith("weight")
        }
        assert all(k.startswith(f"head.{branch}") for k in head)
        assert "backbone.fpn_lateral4.weight" in actual
    assert all(p.grad is None for p in model.teacher.detector.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_lambda_0_is_plain_detectron2_bit_for_bit(kind, student_model, tiny_model, make_batch):
    batch = make_batch((2, 0, 3))
    model, _ = student_model(kind, opts=[*OPTS, "DISTILLATION.WEIGHT", 0.0])
    plain = tiny_model(kind).train()
    for _ in range(2):
        expected, gradients = step(plain, batch)
        expected_next = torch.rand(1)
        actual, actual_gradients = step(model, batch)
        assert torch.equal(torch.rand(1), expected_next)
        assert all(torch.equal(actual[k], v) for k, v in expected.items())
        assert all(torch.equal(actual_gradients[k], v) for k, v in gradients.items())
        assert all(v == 0 for v in distilled(actual).values())
        buffers = dict(model.named_buffers())
        assert all(torch.equal(buffers[k], v) for k, v in plain.named_buffers())


@pytest.mark.parametrize("kind", KINDS)
def test_terms_of_a_student_equal_to_its_teacher_are_zero(kind, student_model, make_batch):
    model, _ = student_model(kind, opts=OPTS)
    with_varied_head(model)
    copy_teacher(model)
    losses, gradients = step(model, make_batch())
    assert all(v.abs() < 1e-5 for v in distilled(losses).values())
    assert all(g.isfinite().all() for g in gradients.values())


@pytest.mark.parametrize("kind", KINDS)
def test_terms_are_linear_in_a_constant_weight(kind, student_model, make_batch):
    values = []
    for weights in (["AID.GRANULARITY", "none"], [*CONSTANT, 0.25], [*CONSTANT, 0.0]):
        model, _ = student_model(kind, opts=[*OPTS, *weights])
        with EventStorage():
            terms = distilled(with_varied_head(model)(make_batch()))
        values.append({k: v.item() for k, v in terms.items()})
    assert all(v > 0 for v in values[0].values())
    assert values[1] == {k: pytest.approx(0.25 * v, rel=1e-4) for k, v in values[0].items()}
    assert set(values[2].values()) == {0.0}
    assert not parameters_with_gradient(sum(terms.values()), model)  # no gradient at weight 0


@pytest.mark.parametrize("kind", KINDS)
def test_images_without_instances_have_a_class_term(kind, student_model, make_batch):
    model, _ = student_model(kind, opts=OPTS)
    losses, gradients = step(model, make_batch((0, 0)))
    assert losses[BOX] == 0 and losses[CLS] > 0  # of predictions above the teacher's min_score
    assert all(v.isfinite() for v in losses.values())
    assert all(g is not None and g.isfinite().all() for g in gradients.values())


@pytest.mark.parametrize("kind", KINDS)
def test_training_reduces_every_term(kind, student_model, make_batch):
    model, _ = student_model(kind, opts=[*OPTS, "AID.GRANULARITY", "none"])
    with_varied_head(model)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    values = []
    for _ in range(40):
        with EventStorage():
            terms = distilled(model(make_batch()))
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
        values.append({k: v.item() for k, v in terms.items()})
    assert all(values[-1][k] < 0.7 * v for k, v in values[0].items()), (values[0], values[-1])


@pytest.mark.parametrize("granularity", ["none", "instance"])
def test_heads_run_once_and_teacher_norms_are_unchanged(granularity, student_model, make_batch):
    key = "MODEL.RETINANET.NORM"
    opts = [*OPTS, key, "BN", "AID.GRANULARITY", granularity]
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


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_computed_in_float32_under_amp(kind, student_model, make_batch):
    model, _ = student_model(kind, opts=OPTS)
    with EventStorage(), torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(make_batch())
    terms = distilled(losses)
    assert all(v.dtype == torch.float32 and v.isfinite() and v > 0 for v in terms.values())
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_two_copies_of_a_teacher_add_up_to_one(student_model, further, make_batch):
    alone, _ = student_model("gfl", opts=OPTS)
    model, _ = student_model("gfl", opts=[*OPTS, *further("gfl")])
    with_varied_head(alone)
    for distiller in model.distillers:
        distiller.teacher.detector.load_state_dict(alone.teacher.detector.state_dict())
    expected, gradients = step(alone, make_batch())
    actual, actual_gradients = step(model, make_batch())
    for name in (CLS, BOX):
        assert expected[name] > 0
        torch.testing.assert_close(actual[name] + actual[f"{name}_1"], expected[name])
    for name, gradient in gradients.items():
        torch.testing.assert_close(actual_gradients[name], gradient, rtol=1e-3, atol=1e-5)


def test_crosskd_combines_with_other_losses(student_model, make_batch):
    names = ["CrossKDLoss", "LocalisationLoss", "ResponseLoss", "AttentionGuidedLoss"]
    model, _ = student_model("gfl", opts=[*OPTS, "DISTILLATION.LOSSES", names])
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
def test_invalid_config_is_refused_at_build_time(kind, key, value, message, student_config):
    cfg = student_config(kind, opts=[*OPTS, f"DISTILLATION.{key}", value])
    with pytest.raises(AIDError, match=message):
        build_model(cfg).build_distillation(cfg)
