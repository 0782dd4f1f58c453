"""CrossKD: known values, and students that learn by it."""

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
SURE, EVEN = [math.log(3), 0.0], [0.0, 0.0]
# A score of 1/2 where the teacher's is 3/4.
FOCAL = 0.25 * math.log(2)
# Of 3 to 1 from 1 to 1.
DIVERGENCE = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
SQUARE, SHIFTED = [0.0, 0, 2, 2], [1.0, 0, 3, 2]


@pytest.fixture
def make_cross(make_context):
    """As make_context, of cross-head predictions in place of the student's."""

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
    cross = both([EVEN] * 3, [SQUARE] * 3)
    teacher = both([SURE, EVEN, SURE], [SHIFTED, SQUARE, SHIFTED])
    found = loss(make_cross(cross, teacher, [0, 0, -1], [0, 0, 1], num_images=3), 2.0, 3.0)
    assert found[CLS].item() == pytest.approx(2 * (FOCAL / 2 + FOCAL) / 3)
    # Intersection 2 of a union of 6 in a hull of 6.
    assert found[BOX].item() == pytest.approx(3 * (1 - 2 / 6) / 2 / 3)


def test_distributions_are_compared_where_there_are_any(make_cross):
    cross = {**both([EVEN], [SQUARE]), "distributions": torch.tensor([[EVEN] * 4])}
    sides = torch.tensor([[SURE, EVEN, EVEN, SURE]])
    teacher = {**both([EVEN], [SHIFTED]), "distributions": sides}
    found = loss(make_cross(cross, teacher, [0], [0]))
    assert found[BOX].item() == pytest.approx(DIVERGENCE / 2)


def test_each_weight_acts_on_its_sample_and_its_term_alone(make_cross):
    cross, teacher = both([EVEN] * 2, [SQUARE] * 2), both([SURE] * 2, [SHIFTED] * 2)
    sides = cross, teacher, [0, 1], [0, 0]
    full = loss(make_cross(*sides))
    less_cls = loss(make_cross(*sides, cls=[1.0, 0.5]))
    less_box = loss(make_cross(*sides, box=[0.25, 1.0]))
    torch.testing.assert_close(less_cls[CLS], 0.75 * full[CLS])
    torch.testing.assert_close(less_box[BOX], 0.625 * full[BOX])
    assert torch.equal(less_cls[BOX], full[BOX]) and torch.equal(less_box[CLS], full[CLS])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_answer_that_is_not_finite_counts_for_nothing(bad, make_cross):
    cross = {k: x.requires_grad_() for k, x in both([EVEN] * 2, [SQUARE] * 2).items()}
    teacher = both([SURE, [bad, 0.0]], [SHIFTED, [0.0, bad, 1, 1]])
    found = loss(make_cross(cross, teacher, [0, 1], [0, 0]))
    assert found[CLS].item() == pytest.approx(FOCAL / 2)
    assert found[BOX].item() == pytest.approx((1 - 2 / 6) / 2)
    sum(found.values()).backward()
    assert all(x.grad[0].abs().sum() > 0 and (x.grad[1] == 0).all() for x in cross.values())


def test_what_agrees_costs_nothing_and_no_sample_neither(make_cross):
    cross = {k: x.requires_grad_() for k, x in both([SURE], [SQUARE]).items()}
    found = loss(make_cross(cross, both([SURE], [SQUARE]), [0], [0]))
    sum(found.values()).backward()
    assert found[CLS] == found[BOX] == 0 and all(x.grad.isfinite().all() for x in cross.values())
    cross = {"logits": torch.zeros(0, 2, requires_grad=True)}
    cross["boxes"] = torch.zeros(0, 4, requires_grad=True)
    found = loss(make_cross(cross, {}, [], [], num_images=2))
    assert found[CLS] == found[BOX] == 0
    sum(found.values()).backward()  # there is a graph, which DDP needs


KINDS = ["retinanet", "gfl", "fcos"]
KEYS = {"retinanet": "MODEL.RETINANET", "gfl": "MODEL.GFL", "fcos": "MODEL.FCOS"}
# A teacher of random weights is sure of nothing: this request about many anchors all the same.
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


def loud(model):
    """``model`` with a teacher whose head tells one cell from another."""
    torch.manual_seed(23)
    for module in model.teacher.detector.head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.2)
    return model


def copy_teacher(model):
    """Give a student its teacher's weights; norms do not normalise by the batch."""
    model.load_state_dict(model.teacher.detector.state_dict(), strict=False)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eval()


def reached(loss, model):
    """Names of the parameters with a gradient that is not 0."""
    model.zero_grad()
    loss.backward(retain_graph=True)
    grads = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    assert all(g.isfinite().all() for g in grads.values())
    return {k for k, g in grads.items() if g.abs().sum() > 0}


@pytest.mark.parametrize("kind", KINDS)
def test_the_student_learns_before_the_cut_alone(kind, student_model, make_batch):
    """Of 3 convolutions the first 2, each branch by its own term, and the backbone."""
    model, _ = student_model(kind, opts=[*OPTS, f"{KEYS[kind]}.NUM_CONVS", 3])
    loud(model)
    with EventStorage():
        terms = distilled(model(make_batch((2, 0, 3))))
    assert set(terms) == {CLS, BOX} and all(v > 0 and v.isfinite() for v in terms.values())
    for name, branch in ((CLS, "cls_subnet"), (BOX, "bbox_subnet")):
        found = reached(terms[name], model)
        head = {k for k in found if k.startswith("head.")}
        assert {f"head.{branch}.{i}.weight" for i in (0, 2)} == {
            k for k in head if k.endswith("weight")
        }
        assert all(k.startswith(f"head.{branch}") for k in head)
        assert "backbone.fpn_lateral4.weight" in found
    assert all(p.grad is None for p in model.teacher.detector.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_lambda_0_is_plain_detectron2_bit_for_bit(kind, student_model, tiny_model, make_batch):
    batch = make_batch((2, 0, 3))
    model, _ = student_model(kind, opts=[*OPTS, "DISTILLATION.WEIGHT", 0.0])
    plain = tiny_model(kind).train()
    for _ in range(2):
        expected, gradients = step(plain, batch)
        expected_next = torch.rand(1)
        found, found_gradients = step(model, batch)
        assert torch.equal(torch.rand(1), expected_next)
        assert all(torch.equal(found[k], v) for k, v in expected.items())
        assert all(torch.equal(found_gradients[k], v) for k, v in gradients.items())
        assert all(v == 0 for v in distilled(found).values())
        buffers = dict(model.named_buffers())
        assert all(torch.equal(buffers[k], v) for k, v in plain.named_buffers())


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_that_is_its_teacher_has_nothing_to_learn(kind, student_model, make_batch):
    model, _ = student_model(kind, opts=OPTS)
    loud(model)
    copy_teacher(model)
    losses, gradients = step(model, make_batch())
    assert all(v.abs() < 1e-5 for v in distilled(losses).values())
    assert all(g.isfinite().all() for g in gradients.values())


@pytest.mark.parametrize("kind", KINDS)
def test_constant_weights_are_a_factor(kind, student_model, make_batch):
    values = []
    for weights in (["AID.GRANULARITY", "none"], [*CONSTANT, 0.25], [*CONSTANT, 0.0]):
        model, _ = student_model(kind, opts=[*OPTS, *weights])
        with EventStorage():
            terms = distilled(loud(model)(make_batch()))
        values.append({k: v.item() for k, v in terms.items()})
    assert all(v > 0 for v in values[0].values())
    assert values[1] == {k: pytest.approx(0.25 * v, rel=1e-4) for k, v in values[0].items()}
    assert set(values[2].values()) == {0.0}
    assert not reached(sum(terms.values()), model)  # weight 0: no gradient either


@pytest.mark.parametrize("kind", KINDS)
def test_images_without_instances(kind, student_model, make_batch):
    model, _ = student_model(kind, opts=OPTS)
    losses, gradients = step(model, make_batch((0, 0)))
    assert losses[BOX] == 0 and losses[CLS] > 0  # what the teacher takes for an object
    assert all(v.isfinite() for v in losses.values())
    assert all(g is not None and g.isfinite().all() for g in gradients.values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_learns_its_teachers_predictions(kind, student_model, make_batch):
    model, _ = student_model(kind, opts=[*OPTS, "AID.GRANULARITY", "none"])
    loud(model)
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
def test_heads_run_once_and_the_teachers_norms_stay(granularity, student_model, make_batch):
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


def test_two_copies_of_a_teacher_are_as_strong_as_one(student_model, further, make_batch):
    alone, _ = student_model("gfl", opts=OPTS)
    model, _ = student_model("gfl", opts=[*OPTS, *further("gfl")])
    loud(alone)
    for distiller in model.distillers:
        distiller.teacher.detector.load_state_dict(alone.teacher.detector.state_dict())
    expected, gradients = step(alone, make_batch())
    found, found_gradients = step(model, make_batch())
    for name in (CLS, BOX):
        assert expected[name] > 0
        torch.testing.assert_close(found[name] + found[f"{name}_1"], expected[name])
    for name, gradient in gradients.items():
        torch.testing.assert_close(found_gradients[name], gradient, rtol=1e-3, atol=1e-5)


def test_beside_other_losses_on_predictions(student_model, make_batch):
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
def test_what_is_wrong_is_said_at_once(kind, key, value, message, student_config):
    cfg = student_config(kind, opts=[*OPTS, f"DISTILLATION.{key}", value])
    with pytest.raises(AIDError, match=message):
        build_model(cfg).build_distillation(cfg)
