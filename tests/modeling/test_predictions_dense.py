"""Paired predictions of dense detectors against their labels, loops and known values."""

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
# Offset of a cell's center from its upper left corner, in cells; GFL uses the corner.
OFFSET = {"gfl": 0.0, "fcos": 0.5}


def with_varied_head(model):
    """Initialize the head so that predictions differ between cells."""
    parts = [model.head.cls_score, model.head.bbox_pred]
    parts += [model.head.ctrness] if hasattr(model.head, "ctrness") else []
    for outputs in parts:
        nn.init.normal_(outputs.weight, std=0.3)
    return model


@pytest.fixture
def two(tiny_model):
    """A function (kind) -> a teacher and a student."""
    return lambda kind: [with_varied_head(tiny_model(kind, seed=seed)) for seed in (1, 2)]


def cells_of(kind, features):
    """Center x, y and stride of every cell, level after level, row after row."""
    return [
        ((x + OFFSET[kind]) * stride, (y + OFFSET[kind]) * stride, stride)
        for stride, feature in zip(STRIDES, features, strict=True)
        for y in range(feature.shape[2])
        for x in range(feature.shape[3])
    ]


def per_cell(outputs, num_anchors=1):
    """Concatenate a head's outputs of all levels to (N, R, ...), the anchors of a cell together."""
    levels = [x.flatten(2).transpose(1, 2) for x in outputs]
    return torch.cat([x.unflatten(2, (num_anchors, -1)).flatten(1, 2) for x in levels], dim=1)


def box_of(kind, cell, prediction):
    """Box of a cell from 4 distances or from 4 distributions over 17 distances."""
    x, y, stride = cell
    if kind == "gfl":
        distances = (prediction.view(4, 17).softmax(dim=1) @ torch.arange(17.0)).tolist()
    else:
        distances = prediction.relu().tolist()
    left, top, right, bottom = (d * stride for d in distances)
    return [x - left, y - top, x + right, y + bottom]


def labels_of(kind, teacher, features, targets):
    """Class and box (N, R) of the instance assigned to each cell in the teacher's training."""
    anchors = teacher.anchor_generator(features)
    label = teacher.label_anchors
    return [torch.stack(list(x)) for x in label(anchors, targets)]


@pytest.mark.parametrize("kind", [*KINDS, "retinanet"])
@torch.no_grad()
def test_cells_are_positive_or_above_the_teachers_min_score(kind, two, paired_batch):
    teacher, student = two(kind)
    batch = paired_batch(teacher, student)
    features = [batch.teacher[level] for level in teacher.head_in_features]
    classes, boxes = labels_of(kind, teacher, features, batch.targets)
    num_anchors = teacher.anchor_generator.num_anchors[0]
    logits, _, *centerness = (per_cell(x, num_anchors) for x in teacher.head(features))
    scores = logits.sigmoid().amax(dim=2)
    if kind == "fcos":
        scores = scores * centerness[0][..., 0].sigmoid()
    threshold = scores.flatten().sort().values[-50].item()
    actual = paired_predictions(teacher, student, PredictionRequest(min_score=threshold), batch)

    positive = (classes >= 0) & (classes < 3)
    selected = positive | (scores > threshold)
    assert 0 < positive.sum() < selected.sum() < selected.numel()
    image, cell = selected.nonzero(as_tuple=True)
    assert torch.equal(actual.image, image)
    assert torch.equal(actual.foreground, positive[image, cell])
    truth = Instances.cat(batch.targets)
    matched_gt = actual.matched_gt[actual.foreground]
    assert torch.equal(truth.gt_classes[matched_gt], classes[image, cell][actual.foreground])
    assert torch.equal(truth.gt_boxes.tensor[matched_gt], boxes[image, cell][actual.foreground])
    torch.testing.assert_close(actual.teacher.logits, logits[image, cell])
    assert actual.activation == "sigmoid"


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_predictions_of_every_cell_equal_a_loop(kind, two, paired_batch):
    teacher, student = two(kind)
    batch = paired_batch(teacher, student, (2,))
    actual = paired_predictions(teacher, student, PredictionRequest(min_score=0.0), batch)
    for detector, features, predicted in (
        (teacher, batch.teacher, actual.teacher),
        (student, batch.student, actual.student),
    ):
        features = [features[level] for level in detector.head_in_features]
        logits, deltas = (per_cell(x)[0] for x in detector.head(features)[:2])
        torch.testing.assert_close(predicted.logits, logits)
        cells = cells_of(kind, features)
        expected = [box_of(kind, *x) for x in zip(cells, deltas, strict=True)]
        torch.testing.assert_close(predicted.boxes, torch.tensor(expected), rtol=1e-4, atol=1e-3)
        if kind == "gfl":
            torch.testing.assert_close(predicted.distributions, deltas.view(-1, 4, 17))
        else:
            assert predicted.distributions is None


def test_known_boxes_of_a_zero_initialized_head(tiny_model, paired_batch):
    """The mean of 17 equal distances is 8 cells; that of FCOS is the bias, 3 cells."""
    for kind, cells in (("gfl", 8), ("fcos", 3)):
        model = tiny_model(kind)
        for parameter in model.head.bbox_pred.parameters():
            nn.init.zeros_(parameter)
        if kind == "fcos":
            nn.init.constant_(model.head.bbox_pred.bias, 3.0)
        actual = paired_predictions(
            model, model, PredictionRequest(min_score=0.0), paired_batch(model, model, (1,))
        )
        x, y = OFFSET[kind] * 8 + 8, OFFSET[kind] * 8  # the second cell of the finest level
        reach = cells * 8
        expected = torch.tensor([x - reach, y - reach, x + reach, y + reach])
        torch.testing.assert_close(actual.teacher.boxes[1], expected)


def test_different_bins_are_refused_for_distributions_only(tiny_model, paired_batch):
    teacher, student = tiny_model("gfl"), tiny_model("gfl", ["MODEL.GFL.REG_MAX", 8])
    with pytest.raises(AIDError, match="MODEL.GFL.REG_MAX is 16 in the teacher, 8 in the student"):
        check_predictions(teacher, student, PredictionRequest(distributions=True), "SomeLoss")
    check_predictions(teacher, student, PredictionRequest(), "SomeLoss")
    actual = paired_predictions(
        teacher, student, PredictionRequest(), paired_batch(teacher, student)
    )
    assert actual.student.boxes.shape == actual.teacher.boxes.shape


def test_localization_distillation_equals_a_reference_by_loops(student_model, make_batch):
    opts = ["DISTILLATION.LOSSES", ["LocalisationLoss"], "AID.GRANULARITY", "none"]
    opts += ["DISTILLATION.LOCALISATION.TEMPERATURE", 3.0]
    model, _ = student_model("gfl", opts=opts)
    teacher = with_varied_head(model.teacher.detector)
    captured = []
    for head in (with_varied_head(model).head, teacher.head):
        head.register_forward_hook(
            lambda head, inputs, output: captured.append((inputs[0], output))
        )
    batch = make_batch((2, 0, 3))
    with EventStorage():
        losses = model(copy.deepcopy(batch))
    (_, (_, student_values)), (features, (_, teacher_values)) = captured
    classes, _ = labels_of("gfl", teacher, features, [x["instances"] for x in batch])
    student_values, teacher_values = (
        per_cell(x).unflatten(2, (4, 17)) for x in (student_values, teacher_values)
    )
    means = []
    for image in range(3):
        positives = (classes[image] < 3).nonzero()[:, 0].tolist()
        assert bool(positives) == (image != 1)
        total = 0.0
        for cell in positives:
            for edge in range(4):
                t, s = (
                    (x[image, cell, edge] / 3).softmax(dim=0)
                    for x in (teacher_values, student_values)
                )
                total += (t * (t.log() - s.log())).sum() / 4
        means.append(total / max(len(positives), 1))
    expected = 0.25 * 3**2 * sum(means) / 3
    assert expected > 0
    torch.testing.assert_close(losses["loss_distill_localisation"], expected)
    gradient = torch.autograd.grad(losses["loss_distill_localisation"], model.head.bbox_pred.weight)
    assert gradient[0].abs().sum() > 0
