"""Response distillation: known values, and what it does in a detector."""

import math

import pytest
import torch
from detectron2.modeling import build_model

from aid.modeling.losses import BoxResponseLoss
from aid.utils.errors import AIDError

LOSSES = ["DISTILLATION.LOSSES", ["BoxResponseLoss"]]


@pytest.fixture
def answer(make_context):
    """A function (logits, weights, counts) -> the loss of instances that lie so on images."""

    def find(student, teacher, weights, counts, temperature=1.0):
        student, teacher = (torch.tensor(x, requires_grad=x is student) for x in (student, teacher))
        image = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).tolist()
        matched_gt = range(len(image))
        sides = {"logits": student}, {"logits": teacher}
        context = make_context(*sides, list(matched_gt), image, num_images=len(counts), all=weights)
        loss = BoxResponseLoss(temperature=temperature, weight=2.0)
        value = loss({}, {}, {}, context)["loss_distill_response"]
        value.backward()
        return value.item(), student.grad

    return find


def test_known_value(answer):
    # Teacher 3 to 1, student even: KL = 0.75 log 1.5 + 0.25 log 0.5.
    divergence = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    even, sure = [0.0, 0.0], [math.log(3), 0.0]
    value, _ = answer([even, even, even], [sure, sure, even], [1.0, 0.5, 1.0], (2, 1))
    # Mean over the instances of an image, then over images; times the weight of the loss.
    assert value == pytest.approx(2 * (1.5 * divergence / 2 + 0) / 2)


def test_a_temperature_keeps_the_scale_of_the_gradient(answer):
    logits = [[0.02, -0.01, 0.0]], [[-0.03, 0.01, 0.02]]
    gradients = [answer(*logits, [1.0], (1,), temperature)[1] for temperature in (1.0, 4.0)]
    torch.testing.assert_close(*gradients, rtol=0.05, atol=0)


def test_what_agrees_costs_nothing_and_what_is_not_finite_counts_for_nothing(answer):
    same = [[1.0, -2.0], [0.5, 3.0]]
    value, gradient = answer(same, same, [1.0, 1.0], (2,))
    assert value == 0 and (gradient == 0).all()
    value, gradient = answer(same, [[math.nan, 0.0], [math.inf, 0.0]], [1.0, 1.0], (2,))
    assert value == 0 and (gradient == 0).all()


def test_images_without_instances(answer):
    value, _ = answer([[0.0, 0.0]], [[9.0, 0.0]], [0.0], (0, 1, 0))
    assert value == 0


def test_a_detector_imitates_answers(student_model, make_batch, storage):
    model, _ = student_model("faster_rcnn", opts=LOSSES)
    terms = [k for k in model(make_batch((2, 0, 3))) if "distill" in k]
    assert terms == ["loss_distill_response"]
    losses = model(make_batch((2, 3)))
    losses["loss_distill_response"].backward()
    heads = model.roi_heads
    for part in (heads.box_predictor.cls_score.weight, heads.box_head.fc1.weight):
        assert part.grad.abs().sum() > 0
    assert heads.box_predictor.bbox_pred.weight.grad is None
    assert model(make_batch((0, 0)))["loss_distill_response"] == 0


def test_a_constant_weight_scales_it(student_model, make_batch, storage):
    values = []
    for opts in (
        ["AID.GRANULARITY", "none"],
        ["AID.WEIGHTING", "ConstantWeighting", "AID.CONSTANT", 0.25],
    ):
        model, _ = student_model("faster_rcnn", opts=[*LOSSES, *opts])
        torch.manual_seed(0)
        values.append(model(make_batch((2, 3)))["loss_distill_response"].item())
    assert values[1] == pytest.approx(0.25 * values[0])


@pytest.mark.parametrize(
    "student, teacher, message",
    [
        ("retinanet", "faster_rcnn", "the student is a AIDRetinaNet"),
        ("faster_rcnn", "retinanet", "the teacher is a RetinaNet"),
        ("faster_rcnn", "cascade_rcnn", "the teacher is a CascadeROIHeads"),
    ],
)
def test_detectors_that_cannot_answer(student, teacher, message, student_config):
    cfg = student_config(student, teacher, LOSSES)
    with pytest.raises(AIDError, match=message):
        build_model(cfg).build_distillation(cfg)
