"""Response loss on classes and boxes: known values, weights and non-finite input."""

import math

import pytest
import torch

from aid.modeling.losses import ResponseLoss

pytestmark = pytest.mark.core

CLS, BOX = "loss_distill_response_cls", "loss_distill_response_box"
CONFIDENT, UNIFORM = [math.log(3), 0.0], [0.0, 0.0]
# Divergence of (3/4, 1/4) from (1/2, 1/2).
DIVERGENCE = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
SQUARE, SHIFTED, FAR = [0.0, 0, 2, 2], [1.0, 0, 3, 2], [4.0, 0, 6, 2]


def loss(context, temperature=1.0, cls_weight=1.0, box_weight=1.0):
    module = ResponseLoss(
        temperature=temperature,
        cls_weight=cls_weight,
        box_weight=box_weight,
        num_rois=0,
        min_score=1.0,
    )
    return module({}, {}, {}, context)


def logits(*rows):
    return {"logits": torch.tensor(rows)}


def boxes(*rows):
    return {"boxes": torch.tensor(rows)}


def test_known_class_loss_with_softmax(make_context):
    # Two samples of an instance and one of background, on two images of three.
    student, teacher = logits(UNIFORM, UNIFORM, UNIFORM), logits(CONFIDENT, UNIFORM, CONFIDENT)
    context = make_context(student, teacher, [0, 0, -1], [0, 0, 1], num_images=3)
    actual = loss(context, cls_weight=2.0)
    assert actual[CLS].item() == pytest.approx(2 * (DIVERGENCE / 2 + DIVERGENCE + 0) / 3)


def test_known_class_loss_with_sigmoids(make_context):
    # A probability of 3/4 against 1/2 in the first class; no difference in the second.
    context = make_context(logits(UNIFORM), logits(CONFIDENT), [0], [0], "sigmoid")
    assert loss(context)[CLS].item() == pytest.approx(DIVERGENCE)
    context = make_context(logits(UNIFORM), logits([math.log(3)] * 2), [0], [0], "sigmoid")
    assert loss(context)[CLS].item() == pytest.approx(2 * DIVERGENCE)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_temperature_divides_logits_and_scales_by_its_square(activation, make_context):
    twice = [2 * x for x in CONFIDENT]
    soft = make_context(logits(UNIFORM), logits(twice), [0], [0], activation)
    hard = make_context(logits(UNIFORM), logits(CONFIDENT), [0], [0], activation)
    actual = loss(soft, temperature=2.0)[CLS]
    torch.testing.assert_close(actual, 4 * loss(hard)[CLS])


def test_temperature_preserves_the_scale_of_the_gradient(make_context):
    gradients = []
    for temperature in (1.0, 4.0):
        student = {"logits": torch.tensor([[0.02, -0.01, 0.0]], requires_grad=True)}
        context = make_context(student, logits([-0.03, 0.01, 0.02]), [0], [0])
        loss(context, temperature)[CLS].backward()
        gradients.append(student["logits"].grad)
    torch.testing.assert_close(*gradients, rtol=0.05, atol=0)


def test_known_box_loss_of_foreground_samples(make_context):
    # Intersection 2, union 6, hull 6; intersection 0, union 8, hull 12.
    near, far = 1 - 2 / 6, 1 + 4 / 12
    student, teacher = boxes(SQUARE, SQUARE, SQUARE), boxes(SHIFTED, FAR, FAR)
    context = make_context(student, teacher, [0, 1, -1], [0, 1, 1])
    actual = loss(context, box_weight=3.0)
    assert actual[BOX].item() == pytest.approx(3 * (near + far) / 2)


def test_weights_affect_only_their_sample_and_term(make_context):
    student = {**logits(UNIFORM, UNIFORM), **boxes(SQUARE, SQUARE)}
    teacher = {**logits(CONFIDENT, CONFIDENT), **boxes(SHIFTED, SHIFTED)}
    sides = student, teacher, [0, 1], [0, 0]
    full = loss(make_context(*sides))
    less_cls = loss(make_context(*sides, cls=[1.0, 0.5]))
    less_box = loss(make_context(*sides, box=[0.25, 1.0]))
    torch.testing.assert_close(less_cls[CLS], 0.75 * full[CLS])
    assert torch.equal(less_cls[BOX], full[BOX])
    torch.testing.assert_close(less_box[BOX], 0.625 * full[BOX])
    assert torch.equal(less_box[CLS], full[CLS])


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_loss_of_equal_predictions_is_zero_with_finite_gradients(activation, make_context):
    generator = torch.Generator().manual_seed(0)
    teacher = {"logits": 5 * torch.randn(4, 3, generator=generator)}
    corner = 9 * torch.rand(4, 2, generator=generator)
    teacher["boxes"] = torch.cat([corner, corner + 1 + corner.flip(0)], dim=1)
    student = {k: x.clone().requires_grad_() for k, x in teacher.items()}
    actual = loss(make_context(student, teacher, [0, 1, 2, -1], [0, 0, 1, 1], activation))
    assert actual[CLS].abs() < 1e-6 and actual[BOX].abs() < 1e-6
    sum(actual.values()).backward()
    assert student["logits"].grad.abs().max() < 1e-6
    assert student["boxes"].grad.isfinite().all()


def test_gradients_point_towards_the_teacher(make_context):
    for activation in ("softmax", "sigmoid"):
        student = {k: v.requires_grad_() for k, v in {**logits(UNIFORM), **boxes(SQUARE)}.items()}
        teacher = {**logits(CONFIDENT), **boxes(SHIFTED)}
        sum(loss(make_context(student, teacher, [0], [0], activation)).values()).backward()
        assert student["logits"].grad[0, 0] < 0
        assert student["boxes"].grad[0, 2] < 0  # the right edge lies further right


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_non_finite_teacher_predictions_are_ignored(bad, activation, make_context):
    student = {**logits(UNIFORM, UNIFORM), **boxes(SQUARE, SQUARE)}
    student = {k: v.requires_grad_() for k, v in student.items()}
    teacher = {**logits(CONFIDENT, [bad, 0.0]), **boxes(SHIFTED, [0.0, bad, 1, 1])}
    actual = loss(make_context(student, teacher, [0, 1], [0, 0], activation))
    assert actual[CLS].item() == pytest.approx(DIVERGENCE / 2)
    assert actual[BOX].item() == pytest.approx((1 - 2 / 6) / 2)
    sum(actual.values()).backward()
    assert all(x.grad[0].abs().sum() > 0 and (x.grad[1] == 0).all() for x in student.values())


@pytest.mark.parametrize("box", [[3.0, 3, 3, 3], [0.0, 1, 2, 1]])
def test_box_without_area_has_zero_loss(box, make_context):
    """Dense heads can predict such boxes, whose IoU with an equal box is 0."""
    student = {"boxes": torch.tensor([box, SQUARE], requires_grad=True)}
    context = make_context(student, boxes(box, SQUARE), [0, 1], [0, 0])
    actual = loss(context)[BOX]
    actual.backward()
    assert actual.abs() < 1e-6 and (student["boxes"].grad[0] == 0).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_student_predictions_make_the_loss_nan(bad, make_context):
    student = {**logits([bad, 0.0]), **boxes([0.0, bad, 1, 1])}
    actual = loss(make_context(student, {**logits(CONFIDENT), **boxes(SHIFTED)}, [0], [0]))
    assert all(value.isnan() for value in actual.values())


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_loss_without_samples_is_zero(activation, make_context):
    student = {"logits": torch.zeros(0, 2, requires_grad=True)}
    student["boxes"] = torch.zeros(0, 4, requires_grad=True)
    context = make_context(student, {}, [], [], activation, num_images=2)
    actual = loss(context)
    assert all(value == 0 for value in actual.values())
    sum(actual.values()).backward()  # DDP needs the graph


def test_loss_is_permutation_invariant(make_context):
    generator = torch.Generator().manual_seed(0)
    matched_gt, image = [0, 0, 1, -1, 2, -1], [0, 0, 0, 0, 1, 1]
    corner = 9 * torch.rand(2, 6, 2, generator=generator)
    sides = [
        {"logits": torch.randn(6, 3, generator=generator), "boxes": torch.cat([x, x + 3], dim=1)}
        for x in corner
    ]
    weights = {k: torch.rand(6, generator=generator).tolist() for k in ("cls", "box")}
    order = [5, 2, 0, 4, 3, 1]
    others = [{k: v[order] for k, v in x.items()} for x in sides]
    reordered = loss(
        make_context(
            *others,
            [matched_gt[i] for i in order],
            [image[i] for i in order],
            **{k: [v[i] for i in order] for k, v in weights.items()},
        )
    )
    for name, value in loss(make_context(*sides, matched_gt, image, **weights)).items():
        torch.testing.assert_close(reordered[name], value)
