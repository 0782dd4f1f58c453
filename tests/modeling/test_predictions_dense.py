"""Paired predictions of GFL and FCOS: their own labels, loops over cells, values by hand."""

import copy

import pytest
import torch
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage
from torch import nn

from aid.modeling.families import PredictionRequest, check_predictions, paired_predictions
from aid.utils.errors import AIDError

KINDS = ["gfl", "fcos"]
STRIDES = (8, 16, 32, 64, 128)
# Of a cell's center from its upper left corner, in cells: GFL's authors count from the corner.
OFFSET = {"gfl": 0.0, "fcos": 0.5}


def loud(model):
    """``model`` with a head whose predictions differ from cell to cell."""
    parts = [model.head.cls_score, model.head.bbox_pred]
    parts += [model.head.ctrness] if hasattr(model.head, "ctrness") else []
    for part in parts:
        nn.init.normal_(part.weight, std=0.3)
    return model


@pytest.fixture
def two(tiny_model):
    """A function kind -> a teacher and a student."""
    return lambda kind: [loud(tiny_model(kind, seed=seed)) for seed in (1, 2)]


def cells_of(kind, features):
    """Center x, y and stride of every cell, level after level, row after row."""
    return [
        ((x + OFFSET[kind]) * stride, (y + OFFSET[kind]) * stride, stride)
        for stride, feature in zip(STRIDES, features, strict=True)
        for y in range(feature.shape[2])
        for x in range(feature.shape[3])
    ]


def per_cell(part):
    """(N, R, ...) of what a head returns for each level."""
    return torch.cat([x.flatten(2).transpose(1, 2) for x in part], dim=1)


def box_of(kind, cell, prediction):
    """The box of a cell, from 4 distances or from 4 distributions over 17 of them."""
    x, y, stride = cell
    if kind == "gfl":
        distances = (prediction.view(4, 17).softmax(dim=1) @ torch.arange(17.0)).tolist()
    else:
        distances = prediction.relu().tolist()
    left, top, right, bottom = (d * stride for d in distances)
    return [x - left, y - top, x + right, y + bottom]


def labels_of(kind, teacher, features, targets):
    """Class and box (N, R) of the instance that each cell learns in a training of the teacher."""
    anchors = teacher.anchor_generator(features)
    label = teacher.label_cells if kind == "gfl" else teacher.label_anchors
    return [torch.stack(list(x)) for x in label(anchors, targets)]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_cells_that_an_instance_owns_and_those_the_teacher_takes_for_an_object(kind, two, see):
    teacher, student = two(kind)
    batch = see(teacher, student)
    features = [batch.teacher[level] for level in teacher.head_in_features]
    classes, boxes = labels_of(kind, teacher, features, batch.targets)
    logits, _, *centerness = (per_cell(x) for x in teacher.head(features))
    scores = logits.sigmoid().amax(dim=2)
    if kind == "fcos":
        scores = scores * centerness[0][..., 0].sigmoid()
    threshold = scores.flatten().sort().values[-50].item()
    found = paired_predictions(teacher, student, PredictionRequest(min_score=threshold), batch)

    positive = classes < 3
    asked = positive | (scores > threshold)
    assert 0 < positive.sum() < asked.sum() < asked.numel()
    image, cell = asked.nonzero(as_tuple=True)
    assert torch.equal(found.image, image)
    assert torch.equal(found.foreground, positive[image, cell])
    truth = Instances.cat(batch.targets)
    matched_gt = found.matched_gt[found.foreground]
    assert torch.equal(truth.gt_classes[matched_gt], classes[image, cell][found.foreground])
    assert torch.equal(truth.gt_boxes.tensor[matched_gt], boxes[image, cell][found.foreground])
    torch.testing.assert_close(found.teacher.logits, logits[image, cell])
    assert found.activation == "sigmoid"


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_what_loops_say_about_every_cell(kind, two, see):
    teacher, student = two(kind)
    batch = see(teacher, student, (2,))
    found = paired_predictions(teacher, student, PredictionRequest(min_score=0.0), batch)
    for detector, features, answer in (
        (teacher, batch.teacher, found.teacher),
        (student, batch.student, found.student),
    ):
        features = [features[level] for level in detector.head_in_features]
        logits, deltas = (per_cell(x)[0] for x in detector.head(features)[:2])
        torch.testing.assert_close(answer.logits, logits)
        cells = cells_of(kind, features)
        expected = [box_of(kind, *x) for x in zip(cells, deltas, strict=True)]
        torch.testing.assert_close(answer.boxes, torch.tensor(expected), rtol=1e-4, atol=1e-3)
        if kind == "gfl":
            torch.testing.assert_close(answer.distributions, deltas.view(-1, 4, 17))
        else:
            assert answer.distributions is None


def test_known_boxes_of_detectors_that_know_nothing(tiny_model, see):
    """Of 17 equal distances the mean is 8 cells; an FCOS's is the bias alone, 3 cells."""
    for kind, cells in (("gfl", 8), ("fcos", 3)):
        model = tiny_model(kind)
        for parameter in model.head.bbox_pred.parameters():
            nn.init.zeros_(parameter)
        if kind == "fcos":
            nn.init.constant_(model.head.bbox_pred.bias, 3.0)
        found = paired_predictions(
            model, model, PredictionRequest(min_score=0.0), see(model, model, (1,))
        )
        x, y = OFFSET[kind] * 8 + 8, OFFSET[kind] * 8  # the second cell of the finest level
        reach = cells * 8
        expected = torch.tensor([x - reach, y - reach, x + reach, y + reach])
        torch.testing.assert_close(found.teacher.boxes[1], expected)


GENERATOR = "MODEL.ANCHOR_GENERATOR."
FINE = ["p3", "p4"]


@pytest.mark.parametrize(
    "teacher, student, opts, message",
    [
        ("gfl", "fcos", [], "the teacher is a GFL, the student is a FCOS: .* or a GFL on both"),
        ("fcos", "gfl", [], "the teacher is a FCOS, the student is a GFL: .* or a FCOS on both"),
        ("gfl", "retinanet", [], "the teacher is a GFL, the student is a RetinaNet"),
        ("retinanet", "gfl", [], "the teacher is a RetinaNet, the student is a GFL"),
        (
            "gfl",
            "gfl",
            ["MODEL.GFL.ANCHOR_SCALE", 4.0],
            "p3 .*16x16 in the teacher, .*32x32 in the student: .* MODEL.GFL.ANCHOR_SCALE and",
        ),
        ("gfl", "gfl", [f"{GENERATOR}OFFSET", 0.25], r"offset 0 .*offset 0.25 .*GENERATOR.OFFSET"),
        ("gfl", "gfl", ["MODEL.GFL.IN_FEATURES", FINE], "the student's p3, p4: give both"),
        ("fcos", "fcos", ["MODEL.FCOS.IN_FEATURES", FINE], "the student's p3, p4: give both"),
    ],
)
def test_detectors_that_cannot_be_asked(teacher, student, opts, message, tiny_model):
    teacher, student = tiny_model(teacher), tiny_model(student, opts)
    with pytest.raises(AIDError, match=f"DISTILLATION.LOSSES: SomeLoss .*{message}") as error:
        check_predictions(teacher, student, PredictionRequest(), "SomeLoss")
    assert "\n" not in str(error.value)


def test_bins_have_to_be_the_same_where_they_are_compared(tiny_model, see):
    teacher, student = tiny_model("gfl"), tiny_model("gfl", ["MODEL.GFL.REG_MAX", 8])
    with pytest.raises(AIDError, match="MODEL.GFL.REG_MAX is 16 in the teacher, 8 in the student"):
        check_predictions(teacher, student, PredictionRequest(distributions=True), "SomeLoss")
    check_predictions(teacher, student, PredictionRequest(), "SomeLoss")
    found = paired_predictions(teacher, student, PredictionRequest(), see(teacher, student))
    assert found.student.boxes.shape == found.teacher.boxes.shape


def test_localisation_distillation_of_real_heads_is_what_loops_find(student_model, make_batch):
    opts = ["DISTILLATION.LOSSES", ["LocalisationLoss"], "AID.GRANULARITY", "none"]
    opts += ["DISTILLATION.LOCALISATION.TEMPERATURE", 3.0]
    model, _ = student_model("gfl", opts=opts)
    teacher = loud(model.teacher.detector)
    said = []
    for head in (loud(model).head, teacher.head):
        head.register_forward_hook(lambda head, inputs, output: said.append((inputs[0], output)))
    batch = make_batch((2, 0, 3))
    with EventStorage():
        losses = model(copy.deepcopy(batch))
    (_, (_, ours)), (features, (_, theirs)) = said
    classes, _ = labels_of("gfl", teacher, features, [x["instances"] for x in batch])
    ours, theirs = (per_cell(x).unflatten(2, (4, 17)) for x in (ours, theirs))
    means = []
    for image in range(3):
        own = (classes[image] < 3).nonzero()[:, 0].tolist()
        assert bool(own) == (image != 1)
        total = 0.0
        for cell in own:
            for edge in range(4):
                t, s = ((x[image, cell, edge] / 3).softmax(dim=0) for x in (theirs, ours))
                total += (t * (t.log() - s.log())).sum() / 4
        means.append(total / max(len(own), 1))
    expected = 0.25 * 3**2 * sum(means) / 3
    assert expected > 0
    torch.testing.assert_close(losses["loss_distill_localisation"], expected)
    gradient = torch.autograd.grad(losses["loss_distill_localisation"], model.head.bbox_pred.weight)
    assert gradient[0].abs().sum() > 0
