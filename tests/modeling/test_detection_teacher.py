"""A teacher of which only detections are known: its loss D, its soft targets, what it refuses."""

import math

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from torch import nn

from aid.data.detections import DETECTIONS
from aid.modeling.detection_teacher import DetectionTeacher
from aid.modeling.families import PredictionRequest, check_predictions, paired_predictions
from aid.modeling.families.given import soft_logits
from aid.utils.errors import AIDError

HEIGHT, WIDTH = 64, 96
KINDS = ("faster_rcnn", "retinanet", "gfl", "fcos")
GIVEN = ["TEACHER.CONFIG_FILE", "", "TEACHER.WEIGHTS", "", "TEACHER.DETECTIONS", "given.json"]
GIVEN += ["DISTILLATION.LOSSES", ["ResponseLoss"]]


def detections(boxes, scores, classes):
    """Detections of an image."""
    given = Instances((HEIGHT, WIDTH))
    given.pred_boxes = Boxes(torch.tensor(boxes).view(-1, 4))
    given.scores = torch.tensor(scores).float()
    given.pred_classes = torch.tensor(classes).long()
    return given


def like_labels(batch, score=1.0):
    """The batch with its labels as detections of one score."""
    for x in batch:
        truth = x["instances"]
        boxes = truth.gt_boxes.tensor.tolist()
        x[DETECTIONS] = detections(boxes, [score] * len(boxes), truth.gt_classes.tolist())
    return batch


def labels(boxes, classes):
    truth = Instances((HEIGHT, WIDTH))
    truth.gt_boxes, truth.gt_classes = Boxes(torch.tensor(boxes)), torch.tensor(classes)
    return truth


@pytest.fixture
def student(student_config):
    """A function (kind, opts) -> student in training, taught by detections."""

    def build(kind, opts=()):
        cfg = student_config(kind, None, [*GIVEN, *opts])
        torch.manual_seed(0)
        model = build_model(cfg).train()
        model.build_distillation(cfg)
        return model

    return build


def test_loss_of_known_detections(tiny_model):
    """Right, of another class only, half as wide with score 0.5, and beside a worse one."""
    teacher = DetectionTeacher(tiny_model("faster_rcnn"), "found.json")
    square = [0.0, 0.0, 10.0, 10.0]
    right, half = [20.0, 0.0, 30.0, 10.0], [20.0, 0.0, 25.0, 10.0]
    sample = {"image": torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8)}
    found = [
        detections([square, square], [1.0, 0.9], [0, 1]),
        detections([right, half], [0.4, 0.5], [2, 2]),
        detections([], [], []),
    ]
    batch = [{**sample, DETECTIONS: x} for x in found]
    targets = [labels([square, square], [0, 2]), labels([right], [2]), labels([right], [1])]
    view = teacher.view(batch, (HEIGHT, WIDTH), "RGB")
    losses = teacher.per_instance_losses(view, targets)
    floor = -math.log(0.01)
    # 0.4 * 1 is more than 0.5 * 0.5.
    expected = {"cls": [0.0, floor, -math.log(0.4), floor], "box": [0.0, 0.99, 0.0, 0.99]}
    for name, values in expected.items():
        torch.testing.assert_close(losses.components[name], torch.tensor(values))
    assert losses.background["cls"].shape == (3, len(teacher.levels))
    assert not losses.background["cls"].any()
    torch.testing.assert_close(losses.level_share.sum(dim=1), torch.ones(4))


@pytest.mark.parametrize("score", [0.0, 0.3, 1.0])
def test_soft_targets_are_the_scores(score):
    scores, classes = torch.tensor([score, 0.7]), torch.tensor([1, 2])
    logits = soft_logits(scores, classes, 3, True)
    assert logits.isfinite().all()
    expected = torch.tensor([[0, score, 0, 1 - score], [0, 0, 0.7, 0.3]])
    torch.testing.assert_close(logits.softmax(dim=1), expected)
    logits = soft_logits(scores, classes, 3, False)
    assert logits.isfinite().all()
    torch.testing.assert_close(logits.sigmoid(), expected[:, :3])


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_the_detections(kind, student, make_batch, paired_batch):
    """A detection of another class than the label is background, a bad one is no sample."""
    model = student(kind)
    batch = paired_batch(model, model, (2, 0, 3))
    wide = [[4.0, 4.0, 52.0, 44.0], [60.0, 10.0, 92.0, 60.0]]
    batch.targets[0] = labels(wide, [0, 1])
    none = detections([], [], [])
    found = detections([*wide, [0.0, 0.0, 9.0, 9.0]], [0.6, 0.8, 0.04], [0, 2, 1])
    batch.detections = [found, none, none]
    request = PredictionRequest(num_proposals=5, min_score=0.05)
    pairs = paired_predictions(model.teacher.detector, model, request, batch)
    assert pairs.background_index == 5 and set(pairs.image.tolist()) == {0}
    of_first = pairs.matched_gt == 0
    assert of_first.any() and set(pairs.matched_gt.tolist()) == {0, 5}
    assert torch.equal(
        pairs.teacher.boxes[of_first], torch.tensor(wide)[:1].expand(of_first.sum(), 4)
    )
    others = pairs.teacher.boxes[~of_first]
    assert torch.equal(others, torch.tensor(wide)[1:].expand(len(others), 4))
    if kind == "faster_rcnn":
        assert pairs.activation == "softmax" and len(pairs.matched_gt) == 2
        probabilities = pairs.teacher.logits.softmax(dim=1)
        expected = torch.tensor([[0.6, 0, 0, 0.4], [0, 0, 0.8, 0.2]])[(~of_first).long()]
    else:
        assert pairs.activation == "sigmoid"
        probabilities = pairs.teacher.logits.sigmoid()
        expected = torch.tensor([[0.6, 0, 0], [0, 0, 0.8]])[(~of_first).long()]
    torch.testing.assert_close(probabilities, expected)
    assert pairs.student.logits.shape == pairs.teacher.logits.shape
    one = paired_predictions(
        model.teacher.detector, model, PredictionRequest(num_proposals=1), batch
    )
    assert len(one.image) == 0  # min_score is 1 by default
    request = PredictionRequest(num_proposals=1, min_score=0.05)
    one = paired_predictions(model.teacher.detector, model, request, batch)
    assert len(one.image) and torch.equal(
        one.teacher.boxes, torch.tensor(wide)[1:].expand(len(one.image), 4)
    )


@pytest.mark.parametrize("kind", ["mask_rcnn", "gfl"])
def test_the_student_learns_the_detections(kind, student, make_batch, storage):
    model = student(kind, ["DISTILLATION.BALANCE", 0.0])
    batch = like_labels(make_batch(masks=kind == "mask_rcnn"), 0.9)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    sums = []
    for _ in range(15):
        losses = model(batch)
        terms = [x for name, x in losses.items() if name.startswith("loss_distill")]
        assert len(terms) == 2
        sums.append(sum(terms).item())
        optimizer.zero_grad()
        sum(terms).backward()
        optimizer.step()
    assert 0 < sums[-1] < 0.7 * sums[0]
    assert not any("teacher" in name for name in model.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_without_detections_trains_on(kind, student, make_batch, storage):
    model, batch = student(kind), make_batch((2, 0))
    for x in batch:
        x[DETECTIONS] = detections([], [], [])
    losses = model(batch)
    terms = [x for name, x in losses.items() if name.startswith("loss_distill")]
    assert len(terms) == 2 and not any(terms)
    sum(losses.values()).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(x.isfinite().all() for x in gradients)


def test_the_task_trains_as_without_a_teacher(student, make_batch, storage):
    """Losses and random numbers are those of the plain detector."""
    model, batch = student("faster_rcnn", ["DISTILLATION.WEIGHT", 0.0]), like_labels(make_batch())
    torch.manual_seed(5)
    with model.as_plain_detector():
        plain = model(batch)
    after = torch.rand(1)
    torch.manual_seed(5)
    losses = model(batch)
    assert torch.equal(torch.rand(1), after)
    assert all(torch.equal(losses[name], x) for name, x in plain.items())
    assert not any(x for name, x in losses.items() if name not in plain)


def test_right_detections_have_full_weight_and_missed_ones_little(student, make_batch):
    """Weights exp(-D) of D = 0, and of the floors 4.61 for classes and 0.99 for boxes."""
    model = student("faster_rcnn", ["AID.ALPHA", 1.0])
    batch = like_labels(make_batch((2,)))
    batch[0][DETECTIONS] = batch[0][DETECTIONS][:1]
    distiller, instances = model.distillers[0], [x["instances"] for x in batch]
    view = distiller.teacher.view(batch, (HEIGHT, WIDTH), "RGB")
    stats = distiller.stats(view, instances, None)
    weights = distiller.weights(stats, instances, {})
    torch.testing.assert_close(weights.components.cls, torch.tensor([1, 0.01]))
    torch.testing.assert_close(weights.components.box, torch.tensor([1, math.exp(-0.99)]))


def test_no_statistics_are_needed_without_weights(student, make_batch, storage):
    model = student("retinanet", ["AID.GRANULARITY", "none"])
    losses = model(like_labels(make_batch()))
    assert losses["loss_distill_response_cls"].isfinite()


def test_a_detector_and_detections_teach_together(student, further, make_batch, storage):
    model = student("faster_rcnn", further("faster_rcnn"))
    losses = model(like_labels(make_batch()))
    assert {"loss_distill_response_cls", "loss_distill_response_cls_1"} <= losses.keys()
    assert str(model.distillers[0]).startswith("teacher of TEACHER.DETECTIONS given.json")


@pytest.mark.parametrize(
    ("kind", "opts", "message"),
    [
        ("retinanet", ["DISTILLATION.LOSSES", ["PKDLoss"]], "PKDLoss needs features"),
        ("retinanet", ["DISTILLATION.LOSSES", ["CrossKDLoss"]], "CrossKDLoss needs a RetinaNet"),
        ("gfl", ["DISTILLATION.LOSSES", ["LocalisationLoss"]], "LocalisationLoss needs heads"),
        ("cascade_rcnn", [], "the student is a CascadeROIHeads"),
        ("faster_rcnn", ["DISTILLATION.RESPONSE.NUM_ROIS", 0], "NUM_ROIS is 0"),
    ],
)
def test_what_needs_more_than_detections_is_refused(kind, opts, message, student):
    with pytest.raises(AIDError, match=message):
        student(kind, opts)


def test_other_detectors_and_samples_are_refused(student, make_batch):
    model = student("faster_rcnn")
    with pytest.raises(AIDError, match="no detections of the teacher of TEACHER.DETECTIONS given"):
        model.teacher.view(make_batch(), (HEIGHT, WIDTH), "RGB")
    with pytest.raises(AIDError, match="the student is a Identity"):
        check_predictions(
            model.teacher.detector,
            nn.Identity(),
            PredictionRequest(num_proposals=1),
            "ResponseLoss",
        )
