"""Regions that are neither object nor background, in the losses of students and teachers."""

import copy
from functools import partial

import pytest
import torch
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from aid.data.ignore_regions import GroundTruth, ignore_boxes
from aid.modeling.families import per_instance_losses, respect_ignore_regions
from aid.modeling.families.anchors import losses_per_instance, match_by_overlap
from aid.modeling.families.base import Targets
from aid.modeling.families.ignore_regions import boxes_in_regions, points_in_regions
from aid.modeling.families.two_stage import match_rois
from aid.utils.errors import AIDError

pytestmark = pytest.mark.core

KINDS = ["faster_rcnn", "mask_rcnn", "cascade_rcnn", "retinanet", "gfl", "fcos"]
DENSE = ["retinanet", "gfl", "fcos"]
STRIDES = (8, 16, 32, 64, 128)
EVERYWHERE = [[-5000.0, -5000.0, 5000.0, 5000.0]]
# Of the images of 64 x 96 pixels.
LEFT = [[0.0, 0.0, 45.0, 64.0]]


def with_regions(batch, *regions):
    """The batch with these regions of each image."""
    samples = []
    for x, boxes in zip(batch, regions, strict=True):
        boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
        fields = x["instances"].get_fields()
        samples.append({**x, "instances": GroundTruth(x["instances"].image_size, boxes, **fields)})
    return samples


def step(model, batch, seed=5):
    """Losses, gradients and log of a training step, and the next random number."""
    torch.manual_seed(seed)
    with EventStorage() as storage, torch.jit.optimized_execution(False):
        losses = model(copy.deepcopy(batch))
        model.zero_grad()
        sum(losses.values()).backward()
        log = {k: v[0] for k, v in storage.latest().items()}
    return losses, {k: p.grad for k, p in model.named_parameters()}, log, torch.rand(1)


def assert_equal_steps(actual, expected):
    for a, b in zip(actual[:2], expected[:2], strict=True):
        assert a.keys() == b.keys() and all(torch.equal(x, b[k]) for k, x in a.items())
    assert actual[2] == expected[2] and torch.equal(actual[3], expected[3])


@pytest.fixture
def respectful(tiny_model):
    """A function (kind, opts) -> detector in training that respects the regions."""

    def build(kind, opts=()):
        model = tiny_model(kind, opts).train()
        respect_ignore_regions(model)
        return model

    return build


# --- the rule


def test_boxes_with_more_than_half_of_their_area_in_one_region():
    regions = Boxes(torch.tensor([[0.0, 0, 10, 10], [14, 0, 20, 10], [0, 0, 30, 1]]))
    shares = {
        (5.0, 0.0, 15.0, 10.0): False,  # half of it in the first one
        (4.0, 0.0, 14.0, 10.0): True,  # 60 %
        (6.0, 2.0, 18.0, 8.0): False,  # a third in each of the first two
        (2.0, 2.0, 4.0, 4.0): True,
        (-20.0, -20.0, 40.0, 40.0): False,  # holds all of them
        (3.0, 3.0, 3.0, 8.0): False,  # no area
        (50.0, 50.0, 60.0, 60.0): False,
    }
    boxes = Boxes(torch.tensor(list(shares)))
    assert boxes_in_regions(boxes, regions).tolist() == list(shares.values())
    assert not boxes_in_regions(boxes, Boxes(torch.empty(0, 4))).any()


def test_points_in_a_region():
    centers = {(4.0, 4.0): True, (10.0, 4.0): False, (9.5, 9.5): True, (25.0, 4.0): False}
    points = torch.tensor([[x - 8, y - 8, x + 8, y + 8] for x, y in centers])
    regions = Boxes(torch.tensor([[0.0, 0, 10, 10], [40, 40, 50, 50]]))
    assert points_in_regions(Boxes(points), regions).tolist() == list(centers.values())
    assert not points_in_regions(Boxes(points), regions[:0]).any()


# --- students


@pytest.mark.parametrize("kind", KINDS)
def test_without_regions_training_is_detectron2s_bit_for_bit(
    kind, tiny_model, respectful, make_batch
):
    plain, model = tiny_model(kind).train(), respectful(kind)
    batch = make_batch((2, 0, 3), masks=kind == "mask_rcnn")
    # The second step depends on the normalizer that the first updated.
    for of_model in (batch, with_regions(batch, [], [], [])):
        assert_equal_steps(step(model, of_model), step(plain, batch))


@pytest.mark.parametrize("kind", KINDS)
def test_detector_keeps_its_name_parameters_and_detections(kind, tiny_model, make_batch):
    section = {"gfl": "GFL", "fcos": "FCOS", "retinanet": "RETINANET"}.get(kind, "ROI_HEADS")
    model = tiny_model(kind, [f"MODEL.{section}.SCORE_THRESH_TEST", 0.0])
    (before,), name = model(make_batch((2,))), type(model).__name__
    assert len(before["instances"]) > 0
    keys, shown = list(model.state_dict()), str(model)
    respect_ignore_regions(model)
    assert type(model).__name__ == name and list(model.state_dict()) == keys and str(model) == shown
    (after,) = copy.deepcopy(model)(make_batch((2,)))
    assert torch.equal(after["instances"].pred_boxes.tensor, before["instances"].pred_boxes.tensor)


def share(box, region):
    """Share of the area of a box that is inside of a region."""
    width = max(0.0, min(box[2], region[2]) - max(box[0], region[0]))
    height = max(0.0, min(box[3], region[3]) - max(box[1], region[1]))
    return width * height / ((box[2] - box[0]) * (box[3] - box[1]))


def contains(region, center):
    return region[0] < center[0] < region[2] and region[1] < center[1] < region[3]


@pytest.mark.parametrize("kind", ["gfl", "fcos"])
def test_points_and_cells_in_a_region_have_no_loss_and_no_gradient(kind, respectful, make_batch):
    opts = ["MODEL.ANCHOR_GENERATOR.OFFSET", 0.5] if kind == "gfl" else []
    model = respectful(kind, opts)
    if kind == "fcos":
        model.anchor_generator.offset = 0.5
    logits = []
    model.head.register_forward_hook(lambda module, inputs, output: logits.extend(output[0]))
    with EventStorage():
        losses = model(with_regions(make_batch((0, 0)), LEFT, []))
    gradients = torch.autograd.grad(
        losses["loss_fcos_cls" if kind == "fcos" else "loss_cls"], logits
    )
    seen = set()
    for stride, gradient in zip(STRIDES, gradients, strict=True):
        # The padded image is larger on the coarse levels.
        has_gradient = (gradient != 0).all(dim=1)
        assert has_gradient[1].all() and torch.equal(has_gradient, (gradient != 0).any(dim=1))
        rows, columns = has_gradient.shape[1:]
        for row in range(rows):
            for column in range(columns):
                center = ((column + 0.5) * stride, (row + 0.5) * stride)
                ignored = contains(LEFT[0], center)
                assert has_gradient[0, row, column] == (not ignored)
                seen.add(ignored)
    assert seen == {True, False}


@pytest.mark.parametrize("kind", ["retinanet", "faster_rcnn"])
def test_anchors_in_a_region_have_no_gradient(kind, respectful, make_batch):
    model = respectful(kind, ["MODEL.RPN.BATCH_SIZE_PER_IMAGE", 10000])
    head = model.head if kind == "retinanet" else model.proposal_generator.rpn_head
    logits, anchors = [], []
    head.register_forward_hook(lambda module, inputs, output: logits.extend(output[0]))
    generator = (
        model.anchor_generator
        if kind == "retinanet"
        else (model.proposal_generator.anchor_generator)
    )
    generator.register_forward_hook(lambda module, inputs, output: anchors.extend(output))
    with EventStorage():
        losses = model(with_regions(make_batch((0, 0)), LEFT, []))
    loss = losses["loss_cls" if kind == "retinanet" else "loss_rpn_cls"]
    seen = set()
    for gradient, boxes in zip(torch.autograd.grad(loss, logits), anchors, strict=True):
        per_cell = generator.num_anchors[0]
        # (N, A * K, H, W) to (N, H * W * A, K).
        flat = gradient.unflatten(1, (per_cell, -1)).permute(0, 3, 4, 1, 2).flatten(1, 3)
        has_gradient = (flat != 0).all(dim=2)
        assert has_gradient[1].all()
        expected = [share(box, LEFT[0]) <= 0.5 for box in boxes.tensor.tolist()]
        assert has_gradient[0].tolist() == expected
        seen.update(expected)
    assert seen == {True, False}


@pytest.mark.parametrize("kind", DENSE)
def test_positives_in_a_region_keep_their_loss(kind, respectful, make_batch):
    model, batch = respectful(kind), make_batch((2, 3))
    name = "loss_fcos_cls" if kind == "fcos" else "loss_cls"
    gradients, logits = [], []
    model.head.register_forward_hook(lambda module, inputs, output: logits.extend(output[0]))
    for regions in ([], EVERYWHERE):
        logits.clear()
        model.loss_normalizer = 100  # the same in both steps
        with EventStorage() as storage:
            losses = model(with_regions(batch, regions, regions))
            positives = round(2 * storage.latest()["num_pos_anchors"][0])
        of_logits = torch.autograd.grad(losses[name], logits)
        gradients.append(torch.cat([x.flatten() for x in of_logits]))
    whole, inside = gradients
    assert positives > 0 and (inside != 0).sum() == 3 * positives  # 3 classes
    torch.testing.assert_close(inside[inside != 0], whole[inside != 0], rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind", ["faster_rcnn", "cascade_rcnn"])
def test_all_samples_in_a_region_are_positives(kind, respectful, make_batch, monkeypatch):
    model, classes = respectful(kind), []
    heads = model.roi_heads
    predictors = heads.box_predictor if kind == "cascade_rcnn" else [heads.box_predictor]
    for predictor in predictors:

        def keep(predictions, proposals, losses=predictor.losses):
            classes.append(torch.cat([x.gt_classes for x in proposals]))
            return losses(predictions, proposals)

        monkeypatch.setattr(predictor, "losses", keep)
    batch = make_batch((2, 0, 3))
    losses, _, log, _ = step(model, with_regions(batch, *[EVERYWHERE] * 3))
    assert log["rpn/num_neg_anchors"] == 0 and log["rpn/num_pos_anchors"] > 0
    assert log.get("roi_head/num_bg_samples", 0) == 0
    assert len(classes) == len(predictors) and len(classes[0]) >= 5
    assert all((x < 3).all() for x in classes)
    assert all(x.isfinite() for x in losses.values())
    classes.clear()
    step(model, with_regions(batch, [], [], []))
    assert all((x == 3).any() for x in classes)


def test_proposals_in_a_region_are_not_sampled(respectful, storage):
    heads = respectful("faster_rcnn").roi_heads
    boxes = [[0.0, 0, 20, 20], [14, 0, 34, 20], [50, 0, 70, 20], [15, 0, 35, 20], [0, 0, 21, 20]]
    proposals = Instances((64, 96), proposal_boxes=Boxes(torch.tensor(boxes)))
    proposals.objectness_logits = torch.zeros(5)
    truth = {"gt_boxes": Boxes(torch.tensor(boxes[:1])), "gt_classes": torch.tensor([1])}
    # Shares of 100, 55, 0, 50 and 100 % are in the region; the first and the last match.
    region = Boxes(torch.tensor([[0.0, 0.0, 25.0, 30.0]]))
    (sampled,) = heads.label_and_sample_proposals(
        [proposals], [GroundTruth((64, 96), region, **truth)]
    )
    pairs = zip(sampled.proposal_boxes.tensor.tolist(), sampled.gt_classes.tolist(), strict=True)
    expected = [(boxes[0], 1), (boxes[0], 1), (boxes[4], 1), (boxes[2], 3), (boxes[3], 3)]
    assert sorted(pairs) == sorted(expected)  # with the ground truth box


@pytest.mark.parametrize("kind", KINDS)
def test_images_with_regions_alone_can_be_trained_on(kind, respectful, make_batch):
    model = respectful(kind)
    for regions in ([LEFT, LEFT], [EVERYWHERE, EVERYWHERE]):
        batch = with_regions(make_batch((0, 0), masks=kind == "mask_rcnn"), *regions)
        losses, gradients, *_ = step(model, batch)
        assert all(x.isfinite() for x in losses.values())
        assert all(x is None or x.isfinite().all() for x in gradients.values())
    assert all(x == 0 for x in losses.values())


@pytest.mark.parametrize("kind", ["faster_rcnn", "cascade_rcnn", *DENSE])
def test_lambda_0_is_the_plain_student_bit_for_bit(kind, student_model, respectful, make_batch):
    distilled, _ = student_model(kind, opts=["DISTILLATION.WEIGHT", 0.0])
    respect_ignore_regions(distilled)
    plain = respectful(kind)
    batch = with_regions(make_batch((2, 0, 3)), LEFT, EVERYWHERE, [])
    for _ in range(2):
        expected, gradients, _, after = step(plain, batch)
        actual, actual_gradients, _, actual_after = step(distilled, batch)
        assert all(torch.equal(actual[k], x) for k, x in expected.items())
        assert all(torch.equal(actual_gradients[k], x) for k, x in gradients.items())
        assert torch.equal(actual_after, after)


def test_other_detectors_are_refused(tiny_model):
    message = "INPUT.IGNORE_REGIONS is on, which a {} does not support: turn it off"
    with pytest.raises(AIDError, match=message.format("Linear")):
        respect_ignore_regions(nn.Linear(1, 1))
    model = tiny_model("faster_rcnn")
    model.proposal_generator = nn.Identity()
    with pytest.raises(AIDError, match=message.format("Identity")):
        respect_ignore_regions(model)


# --- teachers


def losses_of(model, batch):
    images = model.preprocess_image(batch)
    features = model.backbone(images.tensor)
    return per_instance_losses(model, images, features, [x["instances"] for x in batch])


@pytest.mark.parametrize("kind", KINDS)
def test_regions_are_no_background_of_a_teacher(kind, tiny_model, make_batch):
    model, batch = tiny_model(kind), make_batch((2, 0, 3))
    plain = losses_of(model, batch)
    for regions in ([[], [], []], [LEFT, LEFT, []], [EVERYWHERE, [], EVERYWHERE]):
        actual = losses_of(model, with_regions(batch, *regions))
        for name, component in plain.components.items():
            assert torch.equal(actual.components[name], component)
        assert torch.equal(actual.level_share, plain.level_share)
        for name, component in plain.background.items():
            for k, boxes in enumerate(regions):
                if boxes == EVERYWHERE:
                    assert (actual.background[name][k] == 0).all()
                else:
                    same = torch.equal(actual.background[name][k], component[k])
                    assert same == (not boxes)


@pytest.mark.parametrize("kind", ["gfl", "fcos"])
def test_region_smaller_than_the_anchors_is_no_background(kind, tiny_model, make_batch):
    model, batch = tiny_model(kind), make_batch((2,))
    small = [[20.0, 20.0, 32.0, 30.0]]  # with a point of stride 8
    plain, actual = (
        losses_of(model, x).background["cls"] for x in (batch, with_regions(batch, small))
    )
    assert plain[0, 0] != actual[0, 0]


def test_background_is_the_mean_outside_of_the_regions():
    anchors = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 70, 10]])
    truth = {"gt_boxes": Boxes(anchors[3:]), "gt_classes": torch.tensor([0])}
    # 60 % of anchor 1, half of anchor 2, and the anchor of the instance.
    regions = Boxes(torch.tensor([[24.0, 0, 45, 10], [60, 0, 70, 10]]))
    targets = Targets.from_instances([GroundTruth((64, 96), regions, **truth)])
    losses = losses_per_instance(
        lambda matched_gt, at: {"cls": torch.tensor([1.0, 2.0, 4.0, 8.0])[at]},
        partial(match_by_overlap, Matcher([0.5], [0, 1]), Boxes(anchors)),
        [Boxes(anchors)],
        targets,
        ("p2",),
    )
    assert losses.background["cls"].tolist() == [[2.5]]
    assert losses.components["cls"].tolist() == [8.0]


def test_rois_in_a_region_are_no_negatives():
    rois = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 70, 10]])
    truth = {"gt_boxes": Boxes(rois[3:]), "gt_classes": torch.tensor([0])}
    regions = Boxes(torch.tensor([[24.0, 0, 45, 10], [60, 0, 70, 10]]))
    targets = Targets.from_instances([GroundTruth((64, 96), regions, **truth)])
    kept, matched_gt, negative = match_rois(Matcher([0.5], [0, 1]), [Boxes(rois)], targets, True)
    assert len(kept[0]) == 4 and matched_gt.tolist() == [1, 1, 1, 0]
    assert negative.tolist() == [True, False, True, False]


# --- ground truth


def test_ground_truth_keeps_its_regions_on_another_device(make_batch):
    (sample,) = with_regions(make_batch((2,)), LEFT)
    moved = sample["instances"].to(torch.device("cpu"))
    assert ignore_boxes(moved).tensor.tolist() == LEFT and len(moved) == 2
    assert ignore_boxes(sample["instances"].to(torch.device("meta"))).device.type == "meta"
    assert type(moved[:1]) is Instances and not len(ignore_boxes(moved[:1]))
