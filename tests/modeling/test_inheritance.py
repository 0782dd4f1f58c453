"""TEACHER.INHERIT: a student initialized with its teacher's FPN and heads."""

import logging

import pytest
import torch

from aid.modeling.inheritance import inherit
from aid.utils.errors import AIDError


def test_only_fpn_and_heads_are_inherited(student_model, caplog):
    model, _ = student_model("faster_rcnn")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with caplog.at_level(logging.INFO):
        inherited = inherit(model, model.teacher.detector)
    teacher_state, student_state = model.teacher.detector.state_dict(), model.state_dict()
    assert inherited == [
        k for k in student_state if not k.startswith(("backbone.bottom_up.", "distillation."))
    ]
    for name, value in student_state.items():
        expected = teacher_state[name] if name in inherited else before[name]
        assert torch.equal(value, expected), name
    assert not torch.equal(
        student_state["backbone.fpn_lateral3.weight"], before["backbone.fpn_lateral3.weight"]
    )
    student_state["backbone.fpn_lateral3.weight"].add_(1)  # a copy: the teacher stays unchanged
    assert not torch.equal(
        student_state["backbone.fpn_lateral3.weight"],
        model.teacher.detector.state_dict()["backbone.fpn_lateral3.weight"],
    )
    assert "roi_heads.box_predictor.cls_score" in caplog.text
    assert "not inherited: none" in caplog.text


def test_tensors_of_another_shape_are_not_inherited(student_model, tiny_model, caplog):
    model, _ = student_model("faster_rcnn")
    teacher = tiny_model("faster_rcnn", ["MODEL.ROI_BOX_HEAD.FC_DIM", 24])
    head = model.roi_heads.box_predictor.cls_score.weight.clone()
    with caplog.at_level(logging.INFO):
        inherited = inherit(model, teacher)
    assert "proposal_generator.rpn_head.conv.weight" in inherited
    assert torch.equal(model.roi_heads.box_predictor.cls_score.weight, head)
    copied, _, skipped = caplog.text.partition("; not inherited: ")
    assert "roi_heads.box_head.fc1, " in skipped and "rpn_head" not in skipped
    assert "box_predictor.cls_score.bias" in copied  # the module is copied in part
    assert "box_predictor.cls_score.weight" in skipped
    assert not set(copied.split(": ")[-1].split(", ")) & set(skipped.strip().split(", "))


def test_teacher_of_another_family_provides_its_fpn(student_model, tiny_model):
    model, _ = student_model("retinanet")
    inherited = inherit(model, tiny_model("faster_rcnn"))
    assert inherited and all(name.startswith("backbone.fpn_") for name in inherited)


@pytest.mark.parametrize("family", ["retinanet", "faster_rcnn"])
def test_no_inheritable_weight_is_a_one_line_error(family, student_model, tiny_model):
    """Of a Faster R-CNN of another width the biases of the class scores match."""
    model, _ = student_model("faster_rcnn")
    keys = ["MODEL.FPN.OUT_CHANNELS", 12, "MODEL.ROI_BOX_HEAD.FC_DIM", 24]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(AIDError, match="TEACHER.INHERIT is on, but no weight") as error:
        inherit(model, tiny_model(family, keys))
    assert "\n" not in str(error.value)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
