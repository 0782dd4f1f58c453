"""Cross-head predictions: student features passed through the end of the teacher's head."""

from contextlib import ExitStack

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from aid.modeling.families import (
    PredictionRequest,
    check_predictions,
    paired_predictions,
    tap_branches,
)
from aid.modeling.families.cross_head import cross_predictions
from aid.utils.errors import AIDError

KINDS = ["retinanet", "gfl", "fcos"]
KEYS = {"retinanet": "MODEL.RETINANET", "gfl": "MODEL.GFL", "fcos": "MODEL.FCOS"}
BRANCHES = ("cls_subnet", "bbox_subnet")


def with_varied_head(model):
    """Initialize the head so that features and predictions differ between cells."""
    for module in model.head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.3)
        if isinstance(module, _BatchNorm):  # of one level
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model


@pytest.fixture
def two(tiny_model):
    """A function (kind, norm, numbers of convolutions) -> a teacher and a student."""

    def make(kind, norm="", convs=(3, 3)):
        key = KEYS[kind]
        return [
            with_varied_head(
                tiny_model(kind, [f"{key}.NUM_CONVS", n, f"{key}.NORM", norm], seed=seed)
            )
            for seed, n in enumerate(convs, 1)
        ]

    return make


def features_of(batch, side, detector):
    return [getattr(batch, side)[level] for level in detector.head_in_features]


def tapped(student, features, *numbers):
    """Branches of the student's head by number of convolutions, from one forward pass."""
    with tap_branches(student.head, [*numbers, None]) as branches:
        student.head(features)
    return branches


def paired_batch_with_branches(paired_batch, teacher, student, num_convs, num_instances=(2, 0, 3)):
    batch = paired_batch(teacher, student, num_instances)
    batch.student_branches = tapped(student, features_of(batch, "student", student), num_convs)
    return batch


def aligned(student_features, teacher_features):
    """Give each channel of the student's features the mean and variance of the teacher's."""
    out = torch.empty_like(student_features)
    for image in range(len(student_features)):
        for c in range(student_features.shape[1]):
            x, y = student_features[image, c], teacher_features[image, c]
            ratio = ((y.var(correction=0) + 1e-6) / (x.var(correction=0) + 1e-6)).sqrt()
            out[image, c] = (x - x.mean()) * ratio + y.mean()
    return out


def with_exchanged_features(teacher, teacher_features, student, student_features, cuts):
    """Forward pass of the teacher's head with the student's features inserted at the cut."""
    captured = {branch: [] for branch in BRANCHES}

    def keep(branch):
        return lambda module, inputs: captured[branch].append(inputs[0])

    def exchange(branch):
        return lambda module, inputs: aligned(captured[branch].pop(0), inputs[0])

    with ExitStack() as stack:
        for branch in BRANCHES:
            for head, cut, hook in (
                (student.head, cuts[1], keep(branch)),
                (teacher.head, cuts[0], exchange(branch)),
            ):
                module = getattr(head, branch)[cut]
                stack.enter_context(module.register_forward_pre_hook(hook))
        student.head(student_features)
        return teacher.head(teacher_features)


# A convolution, its norm and its activation are 3 modules, or 2; the cut lies before an activation.
@pytest.mark.parametrize(
    "kind, norm, convs, num_convs, cuts",
    [
        ("retinanet", "", (3, 3), 3, (0, 0)),
        ("retinanet", "", (3, 3), 1, (3, 3)),
        ("retinanet", "BN", (3, 3), 1, (5, 5)),
        ("retinanet", "BN", (3, 4), 2, (2, 5)),
        ("gfl", "LN", (3, 3), 2, (2, 2)),
        ("gfl", "", (3, 3), 0, (5, 5)),
        ("fcos", "", (3, 3), 2, (1, 1)),
    ],
)
@torch.no_grad()
def test_cross_predictions_equal_a_forward_with_exchanged_features(
    kind, norm, convs, num_convs, cuts, two, paired_batch
):
    teacher, student = two(kind, norm, convs)
    if kind == "gfl":
        nn.init.uniform_(teacher.head.scales, 0.5, 2)
    batch = paired_batch(teacher, student)
    teacher_features, student_features = (
        features_of(batch, "teacher", teacher),
        features_of(batch, "student", student),
    )
    expected = with_exchanged_features(teacher, teacher_features, student, student_features, cuts)
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    branches = tapped(student, student_features, num_convs)[num_convs]
    actual = cross_predictions(teacher, teacher_features, branches, num_convs)
    for output, expected_output in zip(actual, expected[:2], strict=True):
        assert len(output) == len(expected_output) == 5
        for x, y in zip(output, expected_output, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5 * y.abs().max().item())
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    again = cross_predictions(teacher, teacher_features, branches, num_convs)  # norms restart
    for output, same in zip(actual, again, strict=True):
        assert all(map(torch.equal, output, same))


@pytest.mark.parametrize("kind", KINDS)
def test_cross_predictions_of_identical_detectors_are_the_teachers(kind, two, paired_batch):
    teacher, _ = two(kind)
    batch = paired_batch_with_branches(paired_batch, teacher, teacher, 1)
    actual = paired_predictions(
        teacher, teacher, PredictionRequest(min_score=0.5, cross_convs=1), batch
    )
    assert len(actual.matched_gt) > 0
    torch.testing.assert_close(actual.cross.logits, actual.teacher.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(actual.cross.boxes, actual.teacher.boxes, rtol=1e-3, atol=1e-2)
    assert actual.cross.logits.requires_grad and not actual.teacher.logits.requires_grad
    if kind == "gfl":
        torch.testing.assert_close(
            actual.cross.distributions, actual.teacher.distributions, rtol=1e-3, atol=1e-3
        )
    assert (
        paired_predictions(teacher, teacher, PredictionRequest(min_score=0.5), batch).cross is None
    )


def test_taps_capture_each_depth_once_and_are_removed(two, paired_batch):
    teacher, student = two("retinanet")
    features = features_of(paired_batch(teacher, student), "student", student)
    branches = tapped(student, features, 0, 1, 3, 3)
    assert sorted(branches) == [0, 1, 3]
    assert all(len(x) == 5 for pair in branches.values() for x in pair)
    for level, feature in enumerate(features):
        assert branches[3][0][level] is branches[3][1][level] is feature
        torch.testing.assert_close(branches[1][1][level], student.head.bbox_subnet[:3](feature))
    assert not any(module._forward_pre_hooks for module in student.head.modules())


@pytest.mark.parametrize("num_convs, learning", [(0, (0, 2, 4)), (1, (0, 2)), (2, (0,)), (3, ())])
def test_only_convolutions_before_the_cut_have_gradients(num_convs, learning, two, paired_batch):
    teacher, student = two("retinanet")
    teacher.requires_grad_(False)
    batch = paired_batch_with_branches(paired_batch, teacher, student, num_convs)
    teacher_features = features_of(batch, "teacher", teacher)
    branches = batch.student_branches[num_convs]
    for output in cross_predictions(teacher, teacher_features, branches, num_convs):
        sum(x.square().mean() for x in output).backward(retain_graph=True)
    weights = {k: p for k, p in student.head.named_parameters() if k.endswith("weight")}
    actual = {k for k, p in weights.items() if p.grad is not None and p.grad.abs().sum() > 0}
    assert actual == {f"{branch}.{i}.weight" for branch in BRANCHES for i in learning}
    assert student.backbone.fpn_lateral4.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in teacher.parameters())


def test_non_finite_channel_is_not_aligned(two, paired_batch):
    """Gradients through the other channels stay finite."""
    teacher, student = two("retinanet")
    batch = paired_batch(teacher, student)
    teacher_features = [x.clone() for x in features_of(batch, "teacher", teacher)]
    student_features = [x.detach().requires_grad_() for x in features_of(batch, "student", student)]
    for x in teacher_features:
        x[0, 1, 0, 0] = torch.inf
    logits, deltas = cross_predictions(
        teacher, teacher_features, (student_features, student_features), 3
    )
    for x, y in zip(logits, deltas, strict=True):
        assert x.isfinite().all() and y.isfinite().all()
    sum(x.square().sum() for x in (*logits, *deltas)).backward()
    assert all(x.grad.isfinite().all() and x.grad.abs().sum() > 0 for x in student_features)


def test_constant_channels_have_finite_gradients(two, paired_batch):
    teacher, student = two("fcos")
    teacher_features = features_of(paired_batch(teacher, student), "teacher", teacher)
    student_features = [torch.ones_like(x).requires_grad_() for x in teacher_features]
    logits, deltas = cross_predictions(
        teacher, teacher_features, (student_features, student_features), 3
    )
    sum(x.square().sum() for x in (*logits, *deltas)).backward()
    assert all(x.grad.isfinite().all() for x in student_features)


@pytest.mark.parametrize(
    "teacher, student, opts, message",
    [
        ("faster_rcnn", "faster_rcnn", [], "needs a RetinaNet, GFL or FCOS .* teacher is a Gener"),
        ("faster_rcnn", "gfl", [], "needs a RetinaNet, GFL or FCOS .* the teacher is a Gener"),
        ("fcos", "faster_rcnn", [], "the student is a GeneralizedRCNN: leave the loss out"),
        ("gfl", "fcos", [], "the teacher is a GFL, the student is a FCOS"),
        ("gfl", "gfl", ["MODEL.FPN.OUT_CHANNELS", 4], "takes 8 channels, the student has 4: give"),
    ],
)
def test_incompatible_pairs_are_refused(teacher, student, opts, message, tiny_model):
    teacher, student = tiny_model(teacher), tiny_model(student, opts)
    with pytest.raises(AIDError, match=f"DISTILLATION.LOSSES: SomeLoss .*{message}") as error:
        check_predictions(teacher, student, PredictionRequest(cross_convs=1), "SomeLoss")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("convs, side", [((1, 3), "teacher"), ((3, 1), "student")])
def test_num_convs_above_the_depth_of_a_head_is_refused(convs, side, two):
    teacher, student = two("gfl", "", convs)
    check_predictions(teacher, student, PredictionRequest(cross_convs=1), "SomeLoss")
    message = f"CROSS_KD.NUM_CONVS is 2: a branch of the {side}'s head has 1 convolution: ask"
    with pytest.raises(AIDError, match=message):
        check_predictions(teacher, student, PredictionRequest(cross_convs=2), "SomeLoss")
