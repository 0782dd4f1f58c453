"""Losses of teacher and student compared: known values, and a student left unchanged."""

import math

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from aid.modeling.teacher_check import are_comparable, compare, in_eval_mode


def zero(*modules):
    for module in modules:
        for parameter in module.parameters():
            nn.init.zeros_(parameter)


def test_known_losses_of_a_zero_initialized_faster_rcnn(student_model, make_batch):
    model, _ = student_model("faster_rcnn")
    for detector in (model, model.teacher.detector):
        zero(detector.proposal_generator.rpn_head, detector.roi_heads.box_predictor)
    teacher_losses, student_losses = compare(model, [model.teacher], make_batch((2, 0, 3)))
    torch.testing.assert_close(teacher_losses, student_losses)
    with in_eval_mode(model), torch.no_grad():
        batch = make_batch((2, 0, 3))
        view = model.teacher.view(batch, (64, 96), "RGB")
        losses = model.teacher.per_instance_losses(view, [x["instances"] for x in batch])
    # Probabilities: 1/4 for each of 3 classes and background, 1/2 for an object.
    known = math.log(4) + 2 * math.log(2)
    torch.testing.assert_close(student_losses, losses.components["rpn_box"] + known)


def test_comparison_includes_box_losses_of_dense_detectors(student_model, make_batch):
    model, _ = student_model("retinanet")
    before = compare(model, [model.teacher], make_batch())[1]
    nn.init.constant_(model.head.bbox_pred.bias, 9.0)
    assert (compare(model, [model.teacher], make_batch())[1] > before + 1).all()


@pytest.mark.parametrize("kind", ["mask_rcnn", "cascade_rcnn", "retinanet", "gfl", "fcos"])
def test_comparison_preserves_the_student_and_random_state(kind, student_model, make_batch):
    model, _ = student_model(kind)
    model.backbone.bottom_up.stem.eval()  # as a user may set it
    modes = [module.training for module in model.modules()]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    random_state = torch.get_rng_state()
    losses = compare(model, [model.teacher], make_batch((2, 0, 3), masks=kind == "mask_rcnn"))
    assert all(x.shape == (5,) and x.isfinite().all() for x in losses)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [module.training for module in model.modules()] == modes and any(modes)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_comparison_preserves_gradients_under_autocast(student_model, make_batch, storage):
    model, _ = student_model("faster_rcnn")
    gradients = []
    for compares in (False, True):
        torch.manual_seed(5)
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            if compares:
                compare(model, [model.teacher], make_batch())
            losses = model(make_batch())
        sum(losses.values()).backward()
        gradients.append({k: p.grad for k, p in model.named_parameters()})
    assert all(torch.equal(gradients[1][k], v) for k, v in gradients[0].items())


@pytest.mark.parametrize(
    "student, teacher, expected",
    [
        ("mask_rcnn", "cascade_rcnn", True),
        ("retinanet", "retinanet", True),
        ("gfl", "gfl", True),
        ("gfl", "retinanet", False),
        ("fcos", "fcos", True),
        ("fcos", "retinanet", False),
        ("retinanet", "faster_rcnn", False),
        ("faster_rcnn", "retinanet", False),
    ],
)
def test_only_detectors_of_one_family_are_comparable(student, teacher, expected, student_config):
    cfg = student_config(student, teacher)
    model = build_model(cfg)
    model.build_distillation(cfg)
    assert are_comparable(model, model.teacher.detector) is expected


def test_detector_without_per_instance_losses_is_not_comparable(tiny_model):
    model, other = tiny_model("faster_rcnn"), tiny_model("faster_rcnn")
    model.roi_heads = nn.Identity()
    assert not are_comparable(model, other)
    assert not are_comparable(nn.Identity(), other)
