"""What is shown is what a training step computes."""

import copy

import pytest
import torch
from detectron2.modeling import build_model

from aid.config import load_config
from aid.modeling.losses.attention import spatial_attention
from aid_tools.visualization.collect import as_in_first_step, collect
from aid_tools.visualization.words import PARTS

KINDS = ["faster_rcnn", "mask_rcnn", "cascade_rcnn", "retinanet", "gfl", "fcos"]
PAIRS = [(kind, kind) for kind in KINDS] + [("fcos", "faster_rcnn"), ("faster_rcnn", "gfl")]


def in_training(model, batch, monkeypatch) -> list[tuple]:
    """Features of both sides and weights of one training step, teacher by teacher."""
    found = []
    for distiller in model.distillers:

        def keep(features, view, weights, context, terms=distiller.terms):
            found.append((features, view.features, weights))
            return terms(features, view, weights, context)

        monkeypatch.setattr(distiller, "terms", keep)
    model.train()(copy.deepcopy(batch))
    return found


def attention_of(features):
    return spatial_attention(features, 0.5)


def before_training(model, sample) -> list:
    model.eval()
    with as_in_first_step(model.backbone):
        return collect(model, sample, attention_of)


def check(model, seen, training) -> None:
    """All that was collected against all that the step computed."""
    assert len(seen) == len(training) == len(model.distillers)
    for distiller, found, (ours, theirs, weights) in zip(
        model.distillers, seen, training, strict=True
    ):
        assert list(found.maps) == list(found.strides) == list(distiller.strides)
        torch.testing.assert_close(found.weights, weights.instance)
        torch.testing.assert_close(found.losses, weights.loss)
        if found.parts:
            torch.testing.assert_close(sum(found.parts.values()), weights.loss)
        loss = distiller.losses["AttentionGuidedLoss"]
        for level in distiller.strides:
            torch.testing.assert_close(found.maps[level], weights.maps[level][0, 0])
            teacher, student = theirs[level], ours[level]
            attention = spatial_attention(teacher, 0.5), spatial_attention(student, 0.5)
            torch.testing.assert_close(found.attention[level], attention[0][0, 0])
            torch.testing.assert_close(found.student_attention[level], attention[1][0, 0])
            apart = teacher - loss.adapters[level].feature(student)
            rms = apart.square().mean(dim=1).sqrt() / teacher.square().mean().sqrt()
            torch.testing.assert_close(found.difference[level], rms[0])


@pytest.mark.parametrize("student, teacher", PAIRS)
def test_it_is_what_the_first_step_computes(
    student, teacher, student_model, make_batch, storage, monkeypatch
):
    model, _ = student_model(student, teacher)
    batch = make_batch((3,), masks=student == "mask_rcnn")
    (seen,) = before_training(model, batch[0])
    assert seen.parts.keys() <= PARTS.keys()
    check(model, [seen], in_training(model, batch, monkeypatch))


@pytest.mark.parametrize(
    "opts",
    [
        ["AID.GRANULARITY", "level", "AID.NORMALIZE", True],
        ["AID.GRANULARITY", "image"],
        ["AID.GRANULARITY", "none"],
        ["AID.WEIGHTING", "StudentAwareWeighting", "AID.BACKGROUND", "loss"],
        ["AID.WEIGHTING", "QualityWeighting"],
        ["AID.COEFFICIENTS.RPN_CLS", 0.0, "AID.COEFFICIENTS.BOX", 3.0],
    ],
)
def test_so_it_is_under_every_rule(opts, student_model, make_batch, storage, monkeypatch):
    model, _ = student_model("faster_rcnn", opts=opts)
    batch = make_batch((3,))
    (seen,) = before_training(model, batch[0])
    assert (seen.losses is None) == ("none" in opts) == (not seen.parts)
    check(model, [seen], in_training(model, batch, monkeypatch))


def test_several_teachers_share_what_is_shown(
    student_model, tiny_config, tmp_path, make_batch, storage, monkeypatch
):
    path = tiny_config("retinanet", name="second")
    torch.save({"model": build_model(load_config(path)).state_dict()}, tmp_path / "second.pth")
    opts = ["TEACHER.MORE_CONFIG_FILES", [path]]
    opts += ["TEACHER.MORE_WEIGHTS", [str(tmp_path / "second.pth")]]
    model, _ = student_model("faster_rcnn", opts=opts)
    batch = make_batch((3,))
    first, second = before_training(model, batch[0])
    assert set(first.parts) == {"cls", "box", "rpn_cls", "rpn_box"}
    assert set(second.parts) == {"cls", "box"} and "p2" not in second.maps
    check(model, [first, second], in_training(model, batch, monkeypatch))


def test_looking_changes_nothing(student_model, make_batch):
    model, _ = student_model("faster_rcnn", opts=["AID.WEIGHTING", "RelativeWeighting"])
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    before_training(model, make_batch((2,))[0])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random) and not model.backbone.training


def test_an_image_without_objects_has_maps(student_model, make_batch):
    model, _ = student_model("retinanet")
    (seen,) = before_training(model, make_batch((0,))[0])
    assert len(seen.weights) == 0 and all(x.isfinite().all() for x in seen.maps.values())


def test_a_student_that_became_its_teacher_does_not_differ(student_model, make_batch):
    model, _ = student_model("faster_rcnn")
    sample = make_batch((2,))[0]
    (before,) = before_training(model, sample)
    student = {k: v for k, v in model.state_dict().items() if not k.startswith("distillation.")}
    model.load_state_dict({**model.state_dict(), **model.teacher.detector.state_dict()})
    assert student.keys() == model.teacher.detector.state_dict().keys()
    for adapters in model.distillers[0].losses["AttentionGuidedLoss"].adapters.values():
        torch.nn.init.dirac_(adapters.feature.weight)
        torch.nn.init.zeros_(adapters.feature.bias)
    (after,) = collect(model.eval(), sample, attention_of)
    for level in after.strides:
        assert after.difference[level].max() < 1e-5 < before.difference[level].min()
        torch.testing.assert_close(after.attention[level], after.student_attention[level])


@pytest.mark.parametrize(
    "name", ["AttentionGuidedLoss", "FitNetLoss", "FGDLoss", "MGDLoss", "PKDLoss"]
)
def test_losses_that_ask_for_equal_features_show_how_unequal_they_are(
    name, student_model, make_batch
):
    model, _ = student_model("faster_rcnn", opts=["DISTILLATION.LOSSES", [name]])
    (seen,) = before_training(model, make_batch((2,))[0])
    assert all(x.shape == seen.maps[level].shape for level, x in seen.difference.items())


@pytest.mark.parametrize("name", ["NonLocalLoss", "CWDLoss", "ResponseLoss"])
def test_losses_that_leave_features_free_do_not(name, student_model, make_batch):
    model, _ = student_model("faster_rcnn", opts=["DISTILLATION.LOSSES", [name]])
    (seen,) = before_training(model, make_batch((2,))[0])
    assert seen.difference is None


def test_the_largest_part_is_the_one_that_counts_most(make_seen):
    parts = {"cls": torch.tensor([1.0, 2.0, 1.0]), "box": torch.tensor([3.0, 0.5, torch.nan])}
    seen = make_seen((4.0, 2.5, torch.nan), parts=parts)
    assert [seen.largest_part(i) for i in range(2)] == [("box", 3.0), ("cls", 2.0)]
    assert seen.largest_part(2)[0] == "box"
