"""Students with several teachers: shared weights, and separate losses and state."""

import copy
import math

import pytest
import torch
from detectron2.utils.events import EventStorage

from aid.modeling.teacher_check import compare
from aid.modeling.weighting import ConstantWeighting, TeacherMixing
from aid.utils.errors import AIDError

TERMS = [f"loss_distill_{x}" for x in ("feature", "channel", "spatial", "non_local")]
ALL_LOSSES = ["AttentionGuidedLoss", "NonLocalLoss", "ResponseLoss"]
WITH_PREDICTIONS = ["DISTILLATION.LOSSES", ALL_LOSSES]


def step(model, batch, seed=5, iteration=19):
    """Losses, gradients and log of one step whose random numbers start at ``seed``."""
    torch.manual_seed(seed)
    with EventStorage(iteration) as storage, torch.jit.optimized_execution(False):
        losses = model(copy.deepcopy(batch))
        model.zero_grad()
        sum(losses.values()).backward()
    gradients = {k: p.grad for k, p in model.named_parameters()}
    return losses, gradients, {k: v[0] for k, v in storage.latest().items()}


def test_first_teacher_keeps_its_names_and_initial_values(student_model, further):
    alone, _ = student_model("faster_rcnn")
    expected = alone.state_dict()
    model, _ = student_model("faster_rcnn", opts=further("faster_rcnn", "retinanet"))
    state = model.state_dict()
    assert all(torch.equal(state[k], v) for k, v in expected.items())
    new = {k.split(".")[1] for k in state if k not in expected}
    assert new == {"losses_1", "losses_2"}
    heads = {k.split(".")[1] for k in expected if k.startswith("distillation.")}
    assert heads == {"losses"}
    assert [len(distiller.strides) for distiller in model.distillers] == [5, 5, 4]


@pytest.mark.parametrize("student", ["faster_rcnn", "retinanet"])
def test_lambda_0_is_plain_detectron2_bit_for_bit(
    student, student_model, further, tiny_model, make_batch
):
    batch = make_batch((2, 0, 3))
    opts = [*further("retinanet", "faster_rcnn"), "DISTILLATION.WEIGHT", 0.0]
    distilled, _ = student_model(student, opts=opts)
    plain = tiny_model(student).train()
    for _ in range(2):
        expected, gradients, _ = step(plain, batch)
        expected_next = torch.rand(1)
        actual, actual_gradients, _ = step(distilled, batch)
        assert torch.equal(torch.rand(1), expected_next)
        assert set(actual) == set(expected) | {f"{x}{n}" for x in TERMS for n in ("", "_1", "_2")}
        assert all(torch.equal(actual[k], v) for k, v in expected.items())
        assert all(torch.equal(actual_gradients[k], v) for k, v in gradients.items())


OTHER_WIDTH = ("faster_rcnn", ["MODEL.FPN.OUT_CHANNELS", 12])


@pytest.mark.parametrize(
    "student, teacher, others, rule",
    [
        ("faster_rcnn", "faster_rcnn", ["retinanet"], "ExponentialWeighting"),
        ("faster_rcnn", "gfl", ["fcos"], "StudentAwareWeighting"),
        ("retinanet", "retinanet", ["faster_rcnn", "cascade_rcnn"], "ExponentialWeighting"),
        ("retinanet", "retinanet", ["faster_rcnn", "cascade_rcnn"], "RelativeWeighting"),
        ("mask_rcnn", "retinanet", [OTHER_WIDTH], "StudentAwareWeighting"),
    ],
)
def test_mixed_families_give_every_parameter_a_gradient(
    student, teacher, others, rule, student_model, further, make_batch
):
    model, _ = student_model(student, teacher, [*further(*others), "AID.WEIGHTING", rule])
    for num_instances in ((2, 3), (0, 1), (0, 0)):
        batch = make_batch(num_instances, masks=student == "mask_rcnn")
        losses, gradients, _ = step(model, batch)
        for suffix in ("", *(f"_{k}" for k in range(1, 1 + len(others)))):
            assert all(losses[x + suffix].isfinite() and losses[x + suffix] > 0 for x in TERMS)
        for name, gradient in gradients.items():
            assert gradient is not None or "mask_head" in name, name


def same_adapters(model):
    """Give every teacher the adapters of the first."""
    for number in range(1, len(model.distillers)):
        state = model.distillation["losses"].state_dict()
        model.distillation[f"losses_{number}"].load_state_dict(state)


@pytest.mark.parametrize(
    "num_copies, opts",
    [
        (3, WITH_PREDICTIONS),
        (2, ["AID.GRANULARITY", "level"]),
        (2, ["AID.GRANULARITY", "none"]),
        (2, ["AID.BACKGROUND", "loss", "AID.ALPHA", 0.5, "AID.NORMALIZE", True]),
        (2, ["AID.NORMALIZE", True, "AID.GRANULARITY", "image", *WITH_PREDICTIONS]),
    ],
)
def test_copies_of_a_teacher_add_up_to_one_teacher(num_copies, opts, student_model, make_batch):
    """Equal teachers split every loss evenly."""
    batch = make_batch((2, 0, 3))
    alone, cfg = student_model("faster_rcnn", opts=opts)
    expected, gradients, _ = step(alone, batch)
    more = num_copies - 1
    copies = ["TEACHER.MORE_CONFIG_FILES", [cfg.TEACHER.CONFIG_FILE] * more]
    copies += ["TEACHER.MORE_WEIGHTS", [cfg.TEACHER.WEIGHTS] * more]
    model, _ = student_model("faster_rcnn", opts=[*opts, *copies])
    same_adapters(model)
    actual, actual_gradients, _ = step(model, batch)
    for name, term in expected.items():
        suffixes = ["", *(f"_{k}" for k in range(1, num_copies))]
        if "distill" in name:
            shares = torch.stack([actual[name + x] for x in suffixes])
            torch.testing.assert_close(shares, (term / num_copies).expand(num_copies))
        else:
            assert torch.equal(actual[name], term)
    for name, gradient in gradients.items():
        if not name.startswith("distillation."):
            error = (actual_gradients[name] - gradient).abs().max()
            assert error <= 1e-4 * gradient.abs().max() + 1e-6, name


def test_log_of_several_teachers_says_that_weights_are_normalized(student_model, further, caplog):
    caplog.set_level("INFO")
    student_model("retinanet", opts=["AID.NORMALIZE", True, *further("gfl")])
    assert caplog.text.count("normalize True") == 2


def with_losses(model, number, change, monkeypatch):
    """Let ``change`` modify the losses of a teacher."""
    teacher = model.distillers[number].teacher
    original = teacher.per_instance_losses

    def changed(*args):
        losses = original(*args)
        change(losses)
        return losses

    monkeypatch.setattr(teacher, "per_instance_losses", changed)


def weights_of(model, batch, monkeypatch):
    """Weights of each teacher in a step, before and after mixing, and the log."""
    seen = []
    original = TeacherMixing.__call__

    def recorded(self, weights):
        actual = original(self, weights)
        seen.append((weights, actual))
        return actual

    monkeypatch.setattr(TeacherMixing, "__call__", recorded)
    _, _, log = step(model, batch)
    return *seen[0], log


def test_better_teacher_of_an_instance_has_the_larger_share(
    student_model, further, make_batch, monkeypatch
):
    model, _ = student_model("faster_rcnn", opts=[*further("faster_rcnn"), "AID.ALPHA", 0.5])

    def set_losses(values):
        def change(losses):
            for part in losses.components.values():
                part.zero_()
            losses.components["cls"].copy_(torch.tensor(values))

        return change

    with_losses(model, 0, set_losses([0.0, 4.0, 1.0]), monkeypatch)
    with_losses(model, 1, set_losses([4.0, 0.0, 1.0]), monkeypatch)
    before, (first, second), log = weights_of(model, make_batch((1, 2)), monkeypatch)
    good, bad = 1 / (1 + math.exp(-2)), math.exp(-4) / (1 + math.exp(-2))
    even = math.exp(-0.5) / 2
    assert first.instance.tolist() == pytest.approx([good, bad, even])
    assert second.instance.tolist() == pytest.approx([bad, good, even])
    inside = before[0].maps["p2"] == 1.0  # the first image's box, of teacher loss 0
    torch.testing.assert_close(
        first.maps["p2"][inside], torch.full_like(inside[inside] * 1.0, good)
    )
    # Each teacher is logged under its own name.
    assert log["aid/weight_mean"] == pytest.approx((good + bad + even) / 3)
    assert log["aid/teacher_1/weight_min"] == pytest.approx(bad)
    numbers = {x.removeprefix("aid/") for x in log if x.startswith("aid/") and "_1/" not in x}
    others = {x.removeprefix("aid/teacher_1/") for x in log if x.startswith("aid/teacher_1/")}
    assert numbers - {"distillation_weight"} == others


def test_non_finite_teacher_leaves_the_instance_to_the_other(
    student_model, further, make_batch, monkeypatch
):
    model, _ = student_model("faster_rcnn", opts=further("faster_rcnn"))
    with_losses(model, 0, lambda x: x.components["cls"][1:2].fill_(torch.nan), monkeypatch)
    before, (first, second), log = weights_of(model, make_batch((2, 1)), monkeypatch)
    assert first.instance[1] == 0 and second.instance[1] == before[1].instance[1] > 0
    assert (second.instance < before[1].instance).tolist() == [True, False, True]
    alone = (first.maps["p3"] == 0) & (before[0].maps["p3"] == 0)
    assert alone.any()
    torch.testing.assert_close(second.maps["p3"][alone], before[1].maps["p3"][alone])
    assert log["aid/num_non_finite"] == 1 and log["aid/teacher_1/num_non_finite"] == 0


def test_each_teacher_has_its_own_running_mean(student_model, further, make_batch):
    opts = [*further("retinanet"), "AID.WEIGHTING", "RelativeWeighting"]
    model, _ = student_model("faster_rcnn", opts=opts)
    step(model, make_batch((2, 3)))
    first, second = (distiller.weighting.sum_and_count for distiller in model.distillers)
    assert first[1] == second[1] == 5 and first[0] != second[0]
    state = model.distillation.state_dict()
    assert state["weighting.sum_and_count"] is not state["weighting_1.sum_and_count"]


def test_student_losses_are_computed_once(student_model, further, make_batch, monkeypatch):
    opts = [*further("faster_rcnn", "retinanet"), "AID.WEIGHTING", "StudentAwareWeighting"]
    model, _ = student_model("faster_rcnn", opts=opts)
    calls, original = [], model._student_losses
    monkeypatch.setattr(model, "_student_losses", lambda *x: calls.append(1) or original(*x))
    step(model, make_batch())
    assert len(calls) == 1


def test_weight_map_images_of_all_teachers(student_model, further, make_batch):
    model, _ = student_model("faster_rcnn", opts=[*further("retinanet"), "VIS_PERIOD", 2])
    with EventStorage(4) as storage:
        model(make_batch((2, 1)))
        names = [name for name, *_ in storage._vis_data if name.startswith("aid/")]
    assert [x.split(" and")[0] for x in names] == ["aid/weight", "aid/teacher_1/weight"]


def test_each_teacher_is_compared_with_the_student(student_model, further, make_batch):
    model, _ = student_model("faster_rcnn", opts=further("faster_rcnn"))
    teachers, batch = [distiller.teacher for distiller in model.distillers], make_batch((2, 0, 3))
    *teacher_losses, student_losses = compare(model, teachers, batch)
    for teacher, actual in zip(teachers, teacher_losses, strict=True):
        expected, same = compare(model, [teacher], batch)
        assert torch.equal(actual, expected) and torch.equal(student_losses, same)
    assert not torch.equal(*teacher_losses)


def refused(student_model, opts, message):
    with pytest.raises(AIDError, match=message) as error:
        student_model("faster_rcnn", opts=opts)
    assert "\n" not in str(error.value)


def test_errors_name_the_affected_teacher(student_model, further, tmp_path):
    good = further("faster_rcnn", "retinanet")
    (_, files, _, paths), student = good, student_model
    key = "TEACHER.MORE_CONFIG_FILES"

    def change(files, paths):
        return [key, files, "TEACHER.MORE_WEIGHTS", paths]

    refused(student, change(files, paths[:1]), f"{key} is .*, TEACHER.MORE_WEIGHTS .*each further")
    refused(student, change(files, [paths[0], 3]), "MORE_WEIGHTS .*, 3.*each further")
    refused(student, change([files[0], ""], paths), r"TEACHER.MORE_CONFIG_FILES\[1\] is empty")
    gone = change(files, [paths[0], str(tmp_path / "gone.pth")])
    refused(student, gone, r"TEACHER.MORE_WEIGHTS\[1\] .*gone.pth does not exist")
    refused(student, change([files[0], "no.yaml"], paths), r"FILES\[1\] no.yaml was found neither")
    swapped = change(files, paths[::-1])
    refused(student, swapped, r"TEACHER.MORE_WEIGHTS\[0\] .*further_2.pth does not fit")
    four = further(("retinanet", ["MODEL.RETINANET.NUM_CLASSES", 4]))
    refused(student, four, rf"teacher of {key}\[0\] .*further_1.yaml has 4 classes, the student 3")
    levels = ["DISTILLATION.LEVELS", ["p2", "p3"]]
    refused(student, [*further("retinanet"), *levels], rf"no common level p2: .*{key}\[0\]")


def test_incompatible_distillers_are_refused(student_model, further):
    model, _ = student_model("faster_rcnn", opts=further("faster_rcnn"))
    first, second = model.distillers
    with pytest.raises(AIDError, match="two teachers have one number, with the modules losses"):
        model.set_distillers([first, first], model.schedule)
    second.weighting = ConstantWeighting(constant=0.5)
    with pytest.raises(AIDError, match="2 teachers: ExponentialWeighting .*; ConstantWeighting"):
        model.set_distillers([first, second], model.schedule)
