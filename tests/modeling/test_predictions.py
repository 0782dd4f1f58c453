"""Paired predictions of teacher and student, against loops and inference."""

import pytest
import torch
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from detectron2.structures import Boxes, Instances, pairwise_iou

from aid.modeling.families import (
    PredictionRequest,
    check_predictions,
    paired_predictions,
    per_instance_losses,
)
from aid.utils.errors import AIDError

SIZE = (64, 96)


def test_rois_are_matched_proposals_and_ground_truth(tiny_model, paired_batch):
    teacher, student = (tiny_model("faster_rcnn", seed=seed) for seed in (1, 2))
    batch = paired_batch(teacher, student)
    actual = paired_predictions(teacher, student, PredictionRequest(num_proposals=7), batch)
    proposals, _ = teacher.proposal_generator(batch.images, batch.teacher)
    first, s = 0, 0
    for image, (proposed, truth) in enumerate(zip(proposals, batch.targets, strict=True)):
        rois = [*proposed.proposal_boxes.tensor[:7], *truth.gt_boxes.tensor]
        for i, box in enumerate(rois):
            assert actual.image[s] == image
            if i >= 7:
                assert actual.matched_gt[s] == first + i - 7
            else:
                iou = pairwise_iou(Boxes(box[None]), truth.gt_boxes)[0]
                matches = len(iou) > 0 and iou.max() >= 0.5
                assert actual.matched_gt[s] == (
                    first + iou.argmax() if matches else actual.background_index
                )
            s += 1
        first += len(truth)
    assert s == len(actual.matched_gt) == 3 * 7 + 5 and actual.background_index == 5
    assert torch.equal(actual.foreground, actual.matched_gt < 5)


def test_roi_predictions_equal_inference(tiny_model, paired_batch):
    teacher, student = (tiny_model("faster_rcnn", seed=seed) for seed in (1, 2))
    batch = paired_batch(teacher, student)
    actual = paired_predictions(teacher, student, PredictionRequest(num_proposals=7), batch)
    assert actual.activation == "softmax"
    proposals, _ = teacher.proposal_generator(batch.images, batch.teacher)
    rois = []
    for proposed, truth in zip(proposals, batch.targets, strict=True):
        boxes = Boxes.cat([proposed.proposal_boxes[:7], truth.gt_boxes])
        rois.append(Instances(SIZE, proposal_boxes=boxes))
    # The class of background RoIs is arbitrary: their boxes are not compared.
    classes = torch.cat([x.gt_classes for x in batch.targets] + [torch.zeros(1, dtype=torch.long)])
    for x, matched_gt in zip(rois, actual.matched_gt.split([len(x) for x in rois]), strict=True):
        x.gt_classes = classes[matched_gt]
    for detector, features, predicted in (
        (teacher, batch.teacher, actual.teacher),
        (student, batch.student, actual.student),
    ):
        heads = detector.roi_heads
        pooled = heads.box_pooler(
            [features[level] for level in heads.box_in_features], [x.proposal_boxes for x in rois]
        )
        predictions = heads.box_predictor(heads.box_head(pooled))
        expected = torch.cat(heads.box_predictor.predict_probs(predictions, rois))
        torch.testing.assert_close(predicted.logits.softmax(dim=1), expected)
        expected = heads.box_predictor.predict_boxes_for_gt_classes(predictions, rois)
        torch.testing.assert_close(predicted.boxes, torch.cat(expected))


def test_anchor_predictions_equal_inference(tiny_model, paired_batch):
    teacher, student = (tiny_model("retinanet", seed=seed) for seed in (1, 2))
    batch = paired_batch(teacher, student, (2,))
    actual = paired_predictions(teacher, student, PredictionRequest(min_score=0.0), batch)
    anchors = Boxes.cat(
        student.anchor_generator([batch.student[level] for level in student.head_in_features])
    )
    assert len(actual.matched_gt) == len(anchors)
    logits, deltas = batch.student_predictions
    logits = torch.cat([permute_to_N_HWA_K(x, 3) for x in logits], dim=1)[0]
    deltas = torch.cat([permute_to_N_HWA_K(x, 4) for x in deltas], dim=1)[0]
    torch.testing.assert_close(actual.student.logits, logits)
    expected = student.box2box_transform.apply_deltas(deltas, anchors.tensor)
    torch.testing.assert_close(actual.student.boxes, expected)


@pytest.mark.parametrize("kind", ["faster_rcnn", "mask_rcnn", "retinanet", "gfl", "fcos"])
def test_identical_detectors_agree_and_only_the_student_has_gradients(
    kind, tiny_model, paired_batch
):
    teacher = tiny_model(kind)
    actual = paired_predictions(
        teacher, teacher, PredictionRequest(num_proposals=5), paired_batch(teacher, teacher)
    )
    for name in ("logits", "boxes"):
        student_values, teacher_values = (
            getattr(x, name) for x in (actual.student, actual.teacher)
        )
        torch.testing.assert_close(student_values, teacher_values)
        assert student_values.requires_grad and not teacher_values.requires_grad


@pytest.mark.parametrize("kind", ["faster_rcnn", "retinanet", "gfl", "fcos"])
def test_predictions_of_the_teachers_losses_are_reused(kind, tiny_model, paired_batch):
    teacher, student = (tiny_model(kind, seed=seed) for seed in (1, 2))
    request = PredictionRequest(num_proposals=7, min_score=0.01)
    batch = paired_batch(teacher, student)
    expected = paired_predictions(teacher, student, request, batch)
    losses = per_instance_losses(teacher, batch.images, batch.teacher, batch.targets)
    batch.teacher_predictions = losses.predictions

    def fail(*args):
        raise AssertionError("predicted again")

    module = teacher.proposal_generator if kind == "faster_rcnn" else teacher.head
    with module.register_forward_pre_hook(fail):
        actual = paired_predictions(teacher, student, request, batch)
    assert torch.equal(actual.matched_gt, expected.matched_gt) and torch.equal(
        actual.image, expected.image
    )
    assert torch.equal(actual.teacher.logits, expected.teacher.logits)
    assert torch.equal(actual.student.boxes, expected.student.boxes)


@pytest.mark.parametrize("kind", ["faster_rcnn", "retinanet", "gfl", "fcos"])
def test_batch_without_instances_has_no_default_predictions(kind, tiny_model, paired_batch):
    teacher = tiny_model(kind)
    actual = paired_predictions(
        teacher, teacher, PredictionRequest(), paired_batch(teacher, teacher, (0, 0))
    )
    assert len(actual.matched_gt) == len(actual.image) == len(actual.student.boxes) == 0
    actual = paired_predictions(
        teacher,
        teacher,
        PredictionRequest(num_proposals=3, min_score=0.0),
        paired_batch(teacher, teacher),
    )
    assert len(actual.matched_gt) > 0


def test_sigmoid_classes_of_two_stage_detectors(tiny_model, paired_batch):
    teacher = tiny_model("faster_rcnn", ["MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True])
    actual = paired_predictions(
        teacher, teacher, PredictionRequest(), paired_batch(teacher, teacher)
    )
    assert actual.activation == "sigmoid"
    assert actual.student.logits.shape == actual.teacher.logits.shape == (5, 3)  # no background


def test_samples_have_the_weight_of_their_matched_instance(tiny_model, paired_batch):
    teacher = tiny_model("faster_rcnn")
    actual = paired_predictions(
        teacher, teacher, PredictionRequest(num_proposals=7), paired_batch(teacher, teacher)
    )
    instance = {k: torch.arange(5.0) + 10 * i for i, k in enumerate(("cls", "box"), 1)}
    actual.set_weights(instance, torch.tensor([0.1, 0.2, 0.3]))
    for s, matched_gt in enumerate(actual.matched_gt.tolist()):
        if matched_gt == 5:
            assert actual.weights["cls"][s] == torch.tensor([0.1, 0.2, 0.3])[actual.image[s]]
            assert actual.weights["box"][s] == 0
        else:
            assert [actual.weights[k][s] for k in instance] == [10 + matched_gt, 20 + matched_gt]
    assert 0 < actual.foreground.sum() < len(actual.matched_gt)


def test_union_of_requests():
    assert PredictionRequest.union([]) is None
    requests = [PredictionRequest(num_proposals=9), PredictionRequest(min_score=0.3)]
    assert PredictionRequest.union(requests) == PredictionRequest(num_proposals=9, min_score=0.3)
    assert PredictionRequest.union(
        [PredictionRequest(distributions=True), PredictionRequest()]
    ).distributions


ANCHORS = "MODEL.ANCHOR_GENERATOR."
OTHER_SIZES = [[8, 12], [16, 20], [32, 48], [64, 80], [96, 128]]
FINE = ["p3", "p4"]
TWO_LEVELS = ["MODEL.RETINANET.IN_FEATURES", ["p3", "p4"], f"{ANCHORS}SIZES", [[8, 12], [16, 24]]]
SIGMOID = ["MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True]


@pytest.mark.parametrize(
    "teacher, student, opts, message",
    [
        ("faster_rcnn", "retinanet", [], "Mask R-CNN on both sides, the student is a RetinaNet"),
        ("retinanet", "faster_rcnn", [], "the teacher is a RetinaNet, the student is a Gener"),
        ("cascade_rcnn", "faster_rcnn", [], "the teacher is a CascadeROIHeads"),
        ("faster_rcnn", "cascade_rcnn", [], "the student is a CascadeROIHeads"),
        ("retinanet", "retinanet", [f"{ANCHORS}SIZES", OTHER_SIZES], "p4 .*16x16, .*, .*20x20"),
        ("retinanet", "retinanet", [f"{ANCHORS}OFFSET", 0.5], "level p3 .*offset 0 .*offset 0.5"),
        ("retinanet", "retinanet", TWO_LEVELS, "heads read p3, .*p7, the student's p3, p4: give"),
        ("faster_rcnn", "faster_rcnn", SIGMOID, "USE_SIGMOID_CE is False in the teacher, True in"),
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
        ("gfl", "gfl", [f"{ANCHORS}OFFSET", 0.25], r"offset 0 .*offset 0.25 .*GENERATOR.OFFSET"),
        ("gfl", "gfl", ["MODEL.GFL.IN_FEATURES", FINE], "the student's p3, p4: give both"),
        ("fcos", "fcos", ["MODEL.FCOS.IN_FEATURES", FINE], "the student's p3, p4: give both"),
    ],
)
def test_incompatible_detectors_are_refused(teacher, student, opts, message, tiny_model):
    teacher, student = tiny_model(teacher), tiny_model(student, opts)
    with pytest.raises(AIDError, match=f"DISTILLATION.LOSSES: SomeLoss .*{message}") as error:
        check_predictions(teacher, student, PredictionRequest(), "SomeLoss")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "teacher, student, side", [("fcos", "gfl", "teacher"), ("gfl", "fcos", "student")]
)
def test_error_names_the_detector_without_distributions(teacher, student, side, tiny_model):
    with pytest.raises(AIDError, match=f"the {side} is a FCOS: leave the loss out"):
        check_predictions(
            tiny_model(teacher),
            tiny_model(student),
            PredictionRequest(distributions=True),
            "SomeLoss",
        )


def test_error_names_an_unsupported_family():
    with pytest.raises(
        AIDError, match="predictions of a Linear .* FCOS, GFL, GeneralizedRCNN, RetinaNet"
    ):
        check_predictions(
            torch.nn.Linear(1, 1), torch.nn.Linear(1, 1), PredictionRequest(), "SomeLoss"
        )
