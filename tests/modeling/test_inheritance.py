"""A student that starts from its teacher's FPN and heads."""

import logging

import pytest
import torch

from aid.modeling.inheritance import inherit
from aid.utils.errors import AIDError


def test_fpn_and_heads_are_the_teachers_and_the_rest_is_not(student_model, caplog):
    model, _ = student_model("faster_rcnn")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with caplog.at_level(logging.INFO):
        taken = inherit(model, model.teacher.detector)
    theirs, ours = model.teacher.detector.state_dict(), model.state_dict()
    assert taken == [k for k in ours if not k.startswith(("backbone.bottom_up.", "distillation."))]
    for name, value in ours.items():
        expected = theirs[name] if name in taken else before[name]
        assert torch.equal(value, expected), name
    assert not torch.equal(
        ours["backbone.fpn_lateral3.weight"], before["backbone.fpn_lateral3.weight"]
    )
    ours["backbone.fpn_lateral3.weight"].add_(1)  # copies: the teacher stays as it is
    assert not torch.equal(
        ours["backbone.fpn_lateral3.weight"],
        model.teacher.detector.state_dict()["backbone.fpn_lateral3.weight"],
    )
    assert "roi_heads.box_predictor.cls_score" in caplog.text
    assert "not inherited: none" in caplog.text


def test_what_has_another_shape_stays(student_model, tiny_model, caplog):
    model, _ = student_model("faster_rcnn")
    teacher = tiny_model("faster_rcnn", ["MODEL.ROI_BOX_HEAD.FC_DIM", 24])
    head = model.roi_heads.box_predictor.cls_score.weight.clone()
    with caplog.at_level(logging.INFO):
        taken = inherit(model, teacher)
    assert "proposal_generator.rpn_head.conv.weight" in taken
    assert torch.equal(model.roi_heads.box_predictor.cls_score.weight, head)
    said = caplog.text.partition("not inherited: ")[2]
    assert "roi_heads.box_head.fc1" in said and "rpn_head" not in said


def test_another_family_gives_its_fpn(student_model, tiny_model):
    model, _ = student_model("retinanet")
    taken = inherit(model, tiny_model("faster_rcnn"))
    assert taken and all(name.startswith("backbone.fpn_") for name in taken)


def test_nothing_to_inherit_is_one_line(student_model, tiny_model):
    model, _ = student_model("faster_rcnn")
    other = tiny_model("retinanet", ["MODEL.FPN.OUT_CHANNELS", 12])
    with pytest.raises(AIDError, match="TEACHER.INHERIT is on, but no tensor") as error:
        inherit(model, other)
    assert "\n" not in str(error.value)
