"""Visualized values, compared with those of a training step."""

import copy

import pytest
import torch

from aid.modeling.losses.attention import spatial_attention
from aid_tools.visualization.collect import as_in_first_step, collect
from aid_tools.visualization.words import PARTS, largest_part

KINDS = ["faster_rcnn", "mask_rcnn", "cascade_rcnn", "retinanet", "gfl", "fcos"]
PAIRS = [(kind, kind) for kind in KINDS] + [("fcos", "faster_rcnn"), ("faster_rcnn", "gfl")]


def in_training(model, batch, monkeypatch) -> list[tuple]:
    """Features of both sides and weights of one training step, for each teacher."""
    actual = []
    for distiller in model.distillers:

        def keep(features, view, weights, context, terms=distiller.terms):
            actual.append((features, view.features, weights))
            return terms(features, view, weights, context)

        monkeypatch.setattr(distiller, "terms", keep)
    model.train()(copy.deepcopy(batch))
    return actual


def attention_of(features):
    return spatial_attention(features, 0.5)


def before_training(model, sample) -> list:
    model.eval()
    with as_in_first_step(model.backbone):
        return collect(model, sample, attention_of)


def check(model, seen, training) -> None:
    """Compare the collected values with those of the training step."""
    assert len(seen) == len(training) == len(model.distillers)
    for distiller, actual, (student_features, teacher_features, weights) in zip(
        model.distillers, seen, training, strict=True
    ):
        assert list(actual.maps) == list(actual.strides) == list(distiller.strides)
        torch.testing.assert_close(actual.weights, weights.instance)
        torch.testing.assert_close(actual.losses, weights.loss)
        if actual.parts:
            torch.testing.assert_close(sum(actual.parts.values()), weights.loss)
        loss = distiller.losses["AttentionGuidedLoss"]
        for level in distiller.strides:
            torch.testing.assert_close(actual.maps[level], weights.maps[level][0, 0])
            teacher, student = teacher_features[level], student_features[level]
            attention = spatial_attention(teacher, 0.5), spatial_attention(student, 0.5)
            torch.testing.assert_close(actual.attention[level], attention[0][0, 0])
            torch.testing.assert_close(actual.student_attention[level], attention[1][0, 0])
            difference = teacher - loss.adapters[level].feature(student)
            rms = difference.square().mean(dim=1).sqrt() / teacher.square().mean().sqrt()
            torch.testing.assert_close(actual.difference[level], rms[0])


@pytest.mark.parametrize("student, teacher", PAIRS)
def test_collected_values_equal_the_first_training_step(
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
def test_collected_values_equal_training_under_every_rule(
    opts, student_model, make_batch, storage, monkeypatch
):
    model, _ = student_model("faster_rcnn", opts=opts)
    batch = make_batch((3,))
    (seen,) = before_training(model, batch[0])
    assert (seen.losses is None) == ("none" in opts) == (not seen.parts)
    check(model, [seen], in_training(model, batch, monkeypatch))


def test_values_of_several_teachers_are_collected(
    student_model, further, make_batch, storage, monkeypatch
):
    model, _ = student_model("faster_rcnn", opts=further("retinanet"))
    batch = make_batch((3,))
    first, second = before_training(model, batch[0])
    assert set(first.parts) == {"cls", "box", "rpn_cls", "rpn_box"}
    assert set(second.parts) == {"cls", "box"} and "p2" not in second.maps
    check(model, [first, second], in_training(model, batch, monkeypatch))


def test_collecting_preserves_the_model_and_random_state(student_model, make_batch):
    model, _ = student_model("faster_rcnn", opts=["AID.WEIGHTING", "RelativeWeighting"])
    before, random_state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    before_training(model, make_batch((2,))[0])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state) and not model.backbone.training


def test_image_without_objects_has_finite_maps(student_model, make_batch):
    model, _ = student_model("retinanet")
    (seen,) = before_training(model, make_batch((0,))[0])
    assert len(seen.weights) == 0 and all(x.isfinite().all() for x in seen.maps.values())


def test_student_equal_to_its_teacher_has_no_difference(student_model, make_batch):
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
def test_feature_losses_have_a_difference_map(name, student_model, make_batch):
    model, _ = student_model("faster_rcnn", opts=["DISTILLATION.LOSSES", [name]])
    (seen,) = before_training(model, make_batch((2,))[0])
    assert all(x.shape == seen.maps[level].shape for level, x in seen.difference.items())


@pytest.mark.parametrize("name", ["NonLocalLoss", "CWDLoss", "ResponseLoss"])
def test_other_losses_have_no_difference_map(name, student_model, make_batch):
    model, _ = student_model("faster_rcnn", opts=["DISTILLATION.LOSSES", [name]])
    (seen,) = before_training(model, make_batch((2,))[0])
    assert seen.difference is None


def test_largest_component_of_each_instance(make_seen):
    parts = {"cls": torch.tensor([1.0, 2.0, 1.0]), "box": torch.tensor([3.0, 0.5, torch.nan])}
    seen = make_seen((4.0, 2.5, torch.nan), parts=parts)
    assert [largest_part(seen.parts, i) for i in range(2)] == [("box", 3.0), ("cls", 2.0)]
    assert largest_part(seen.parts, 2)[0] == "box"
