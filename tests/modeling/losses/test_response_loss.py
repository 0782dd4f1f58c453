"""Imitation of classes and boxes: known values, and each weighed by its own weight."""

import math

import pytest
import torch

from aid.modeling.losses import ResponseLoss

pytestmark = pytest.mark.core

CLS, BOX = "loss_distill_response_cls", "loss_distill_response_box"
SURE, EVEN = [math.log(3), 0.0], [0.0, 0.0]
# Of 3 to 1 from 1 to 1.
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


def test_classes_under_a_softmax(make_context):
    # Two samples of an instance and one of background, on two images of three.
    student, teacher = logits(EVEN, EVEN, EVEN), logits(SURE, EVEN, SURE)
    context = make_context(student, teacher, [0, 0, -1], [0, 0, 1], num_images=3)
    found = loss(context, cls_weight=2.0)
    assert found[CLS].item() == pytest.approx(2 * (DIVERGENCE / 2 + DIVERGENCE + 0) / 3)


def test_classes_under_sigmoids(make_context):
    # A probability of 3/4 against 1/2 in the first class; no difference in the second.
    context = make_context(logits(EVEN), logits(SURE), [0], [0], "sigmoid")
    assert loss(context)[CLS].item() == pytest.approx(DIVERGENCE)
    context = make_context(logits(EVEN), logits([math.log(3)] * 2), [0], [0], "sigmoid")
    assert loss(context)[CLS].item() == pytest.approx(2 * DIVERGENCE)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_a_temperature_divides_logits_and_multiplies_by_its_square(activation, make_context):
    twice = [2 * x for x in SURE]
    soft = make_context(logits(EVEN), logits(twice), [0], [0], activation)
    hard = make_context(logits(EVEN), logits(SURE), [0], [0], activation)
    found = loss(soft, temperature=2.0)[CLS]
    torch.testing.assert_close(found, 4 * loss(hard)[CLS])


def test_a_temperature_keeps_the_scale_of_the_gradient(make_context):
    gradients = []
    for temperature in (1.0, 4.0):
        student = {"logits": torch.tensor([[0.02, -0.01, 0.0]], requires_grad=True)}
        context = make_context(student, logits([-0.03, 0.01, 0.02]), [0], [0])
        loss(context, temperature)[CLS].backward()
        gradients.append(student["logits"].grad)
    torch.testing.assert_close(*gradients, rtol=0.05, atol=0)


def test_boxes_of_owned_samples(make_context):
    # Intersection 2 of a union of 6 in a hull of 6; nothing of 8 in a hull of 12.
    near, far = 1 - 2 / 6, 1 + 4 / 12
    student, teacher = boxes(SQUARE, SQUARE, SQUARE), boxes(SHIFTED, FAR, FAR)
    context = make_context(student, teacher, [0, 1, -1], [0, 1, 1])
    found = loss(context, box_weight=3.0)
    assert found[BOX].item() == pytest.approx(3 * (near + far) / 2)


def test_each_weight_acts_on_its_sample_and_its_term_alone(make_context):
    student = {**logits(EVEN, EVEN), **boxes(SQUARE, SQUARE)}
    teacher = {**logits(SURE, SURE), **boxes(SHIFTED, SHIFTED)}
    sides = student, teacher, [0, 1], [0, 0]
    full = loss(make_context(*sides))
    less_cls = loss(make_context(*sides, cls=[1.0, 0.5]))
    less_box = loss(make_context(*sides, box=[0.25, 1.0]))
    torch.testing.assert_close(less_cls[CLS], 0.75 * full[CLS])
    assert torch.equal(less_cls[BOX], full[BOX])
    torch.testing.assert_close(less_box[BOX], 0.625 * full[BOX])
    assert torch.equal(less_box[CLS], full[CLS])


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_what_agrees_costs_nothing_and_its_gradients_are_finite(activation, make_context):
    generator = torch.Generator().manual_seed(0)
    teacher = {"logits": 5 * torch.randn(4, 3, generator=generator)}
    corner = 9 * torch.rand(4, 2, generator=generator)
    teacher["boxes"] = torch.cat([corner, corner + 1 + corner.flip(0)], dim=1)
    student = {k: x.clone().requires_grad_() for k, x in teacher.items()}
    found = loss(make_context(student, teacher, [0, 1, 2, -1], [0, 0, 1, 1], activation))
    assert found[CLS].abs() < 1e-6 and found[BOX].abs() < 1e-6
    sum(found.values()).backward()
    assert student["logits"].grad.abs().max() < 1e-6
    assert student["boxes"].grad.isfinite().all()


def test_gradients_lead_towards_the_teacher(make_context):
    for activation in ("softmax", "sigmoid"):
        student = {k: v.requires_grad_() for k, v in {**logits(EVEN), **boxes(SQUARE)}.items()}
        teacher = {**logits(SURE), **boxes(SHIFTED)}
        sum(loss(make_context(student, teacher, [0], [0], activation)).values()).backward()
        assert student["logits"].grad[0, 0] < 0
        assert student["boxes"].grad[0, 2] < 0  # the right edge lies further right


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_an_answer_that_is_not_finite_counts_for_nothing(bad, activation, make_context):
    student = {**logits(EVEN, EVEN), **boxes(SQUARE, SQUARE)}
    student = {k: v.requires_grad_() for k, v in student.items()}
    teacher = {**logits(SURE, [bad, 0.0]), **boxes(SHIFTED, [0.0, bad, 1, 1])}
    found = loss(make_context(student, teacher, [0, 1], [0, 0], activation))
    assert found[CLS].item() == pytest.approx(DIVERGENCE / 2)
    assert found[BOX].item() == pytest.approx((1 - 2 / 6) / 2)
    sum(found.values()).backward()
    assert all(x.grad[0].abs().sum() > 0 and (x.grad[1] == 0).all() for x in student.values())


@pytest.mark.parametrize("box", [[3.0, 3, 3, 3], [0.0, 1, 2, 1]])
def test_a_box_without_area_counts_for_nothing(box, make_context):
    """Not even an equal box overlaps it; a dense head's may be empty."""
    student = {"boxes": torch.tensor([box, SQUARE], requires_grad=True)}
    context = make_context(student, boxes(box, SQUARE), [0, 1], [0, 0])
    found = loss(context)[BOX]
    found.backward()
    assert found.abs() < 1e-6 and (student["boxes"].grad[0] == 0).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_student_that_is_not_finite_is_not_hidden(bad, make_context):
    student = {**logits([bad, 0.0]), **boxes([0.0, bad, 1, 1])}
    found = loss(make_context(student, {**logits(SURE), **boxes(SHIFTED)}, [0], [0]))
    assert all(value.isnan() for value in found.values())


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_no_sample_at_all(activation, make_context):
    student = {"logits": torch.zeros(0, 2, requires_grad=True)}
    student["boxes"] = torch.zeros(0, 4, requires_grad=True)
    context = make_context(student, {}, [], [], activation, num_images=2)
    found = loss(context)
    assert all(value == 0 for value in found.values())
    sum(found.values()).backward()  # there is a graph, which DDP needs


def test_the_order_of_samples_changes_nothing(make_context):
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
    again = loss(
        make_context(
            *others,
            [matched_gt[i] for i in order],
            [image[i] for i in order],
            **{k: [v[i] for i in order] for k, v in weights.items()},
        )
    )
    for name, value in loss(make_context(*sides, matched_gt, image, **weights)).items():
        torch.testing.assert_close(again[name], value)
