"""What both sides are asked about and what they say, against loops and inference."""

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


def test_rois_are_proposals_and_ground_truth_and_belong_to_what_they_overlap(tiny_model, see):
    teacher, student = (tiny_model("faster_rcnn", seed=seed) for seed in (1, 2))
    batch = see(teacher, student)
    found = paired_predictions(teacher, student, PredictionRequest(num_proposals=7), batch)
    proposals, _ = teacher.proposal_generator(batch.images, batch.teacher)
    first, s = 0, 0
    for image, (proposed, truth) in enumerate(zip(proposals, batch.targets, strict=True)):
        rois = [*proposed.proposal_boxes.tensor[:7], *truth.gt_boxes.tensor]
        for i, box in enumerate(rois):
            assert found.image[s] == image
            if i >= 7:
                assert found.matched_gt[s] == first + i - 7
            else:
                iou = pairwise_iou(Boxes(box[None]), truth.gt_boxes)[0]
                own = len(iou) > 0 and iou.max() >= 0.5
                assert found.matched_gt[s] == (
                    first + iou.argmax() if own else found.background_index
                )
            s += 1
        first += len(truth)
    assert s == len(found.matched_gt) == 3 * 7 + 5 and found.background_index == 5
    assert torch.equal(found.foreground, found.matched_gt < 5)


def test_rois_are_answered_as_in_inference(tiny_model, see):
    teacher, student = (tiny_model("faster_rcnn", seed=seed) for seed in (1, 2))
    batch = see(teacher, student)
    found = paired_predictions(teacher, student, PredictionRequest(num_proposals=7), batch)
    assert found.activation == "softmax"
    proposals, _ = teacher.proposal_generator(batch.images, batch.teacher)
    rois = []
    for proposed, truth in zip(proposals, batch.targets, strict=True):
        boxes = Boxes.cat([proposed.proposal_boxes[:7], truth.gt_boxes])
        rois.append(Instances(SIZE, proposal_boxes=boxes))
    # The box of the class of background does not matter: it is that of the first one.
    classes = torch.cat([x.gt_classes for x in batch.targets] + [torch.zeros(1, dtype=torch.long)])
    for x, matched_gt in zip(rois, found.matched_gt.split([len(x) for x in rois]), strict=True):
        x.gt_classes = classes[matched_gt]
    for detector, features, answer in (
        (teacher, batch.teacher, found.teacher),
        (student, batch.student, found.student),
    ):
        heads = detector.roi_heads
        pooled = heads.box_pooler(
            [features[level] for level in heads.box_in_features], [x.proposal_boxes for x in rois]
        )
        predictions = heads.box_predictor(heads.box_head(pooled))
        expected = torch.cat(heads.box_predictor.predict_probs(predictions, rois))
        torch.testing.assert_close(answer.logits.softmax(dim=1), expected)
        expected = heads.box_predictor.predict_boxes_for_gt_classes(predictions, rois)
        torch.testing.assert_close(answer.boxes, torch.cat(expected))


def test_anchors_that_an_instance_owns_and_those_the_teacher_takes_for_an_object(tiny_model, see):
    teacher, student = (tiny_model("retinanet", seed=seed) for seed in (1, 2))
    batch = see(teacher, student)
    features = [batch.teacher[level] for level in teacher.head_in_features]
    anchors = teacher.anchor_generator(features)
    labels, _ = teacher.label_anchors(anchors, batch.targets)
    scores = torch.cat(
        [permute_to_N_HWA_K(x, 3) for x in teacher.head(features)[0]], dim=1
    ).sigmoid()
    threshold = scores.amax(dim=2).flatten().sort().values[-50].item()
    found = paired_predictions(teacher, student, PredictionRequest(min_score=threshold), batch)
    positive = (torch.stack(labels) >= 0) & (torch.stack(labels) < 3)
    asked = positive | (scores.amax(dim=2) > threshold)
    assert 0 < positive.sum() < asked.sum() < asked.numel()
    image, anchor = asked.nonzero(as_tuple=True)
    assert torch.equal(found.image, image)
    assert torch.equal(found.foreground, positive[image, anchor])
    torch.testing.assert_close(found.teacher.logits.sigmoid(), scores[image, anchor])
    assert found.activation == "sigmoid"


def test_anchors_are_answered_as_in_inference(tiny_model, see):
    teacher, student = (tiny_model("retinanet", seed=seed) for seed in (1, 2))
    batch = see(teacher, student, (2,))
    found = paired_predictions(teacher, student, PredictionRequest(min_score=0.0), batch)
    anchors = Boxes.cat(
        student.anchor_generator([batch.student[level] for level in student.head_in_features])
    )
    assert len(found.matched_gt) == len(anchors)
    logits, deltas = batch.student_predictions
    logits = torch.cat([permute_to_N_HWA_K(x, 3) for x in logits], dim=1)[0]
    deltas = torch.cat([permute_to_N_HWA_K(x, 4) for x in deltas], dim=1)[0]
    torch.testing.assert_close(found.student.logits, logits)
    expected = student.box2box_transform.apply_deltas(deltas, anchors.tensor)
    torch.testing.assert_close(found.student.boxes, expected)


@pytest.mark.parametrize("kind", ["faster_rcnn", "mask_rcnn", "retinanet", "gfl", "fcos"])
def test_one_detector_agrees_with_itself_and_the_teacher_has_no_gradient(kind, tiny_model, see):
    teacher = tiny_model(kind)
    found = paired_predictions(
        teacher, teacher, PredictionRequest(num_proposals=5), see(teacher, teacher)
    )
    for name in ("logits", "boxes"):
        ours, theirs = (getattr(x, name) for x in (found.student, found.teacher))
        torch.testing.assert_close(ours, theirs)
        assert ours.requires_grad and not theirs.requires_grad


@pytest.mark.parametrize("kind", ["faster_rcnn", "retinanet", "gfl", "fcos"])
def test_what_the_teachers_losses_have_predicted_is_not_predicted_again(kind, tiny_model, see):
    teacher, student = (tiny_model(kind, seed=seed) for seed in (1, 2))
    request = PredictionRequest(num_proposals=7, min_score=0.01)
    batch = see(teacher, student)
    expected = paired_predictions(teacher, student, request, batch)
    losses = per_instance_losses(teacher, batch.images, batch.teacher, batch.targets)
    batch.teacher_predictions = losses.predictions

    def never(*args):
        raise AssertionError("predicted again")

    module = teacher.proposal_generator if kind == "faster_rcnn" else teacher.head
    with module.register_forward_pre_hook(never):
        found = paired_predictions(teacher, student, request, batch)
    assert torch.equal(found.matched_gt, expected.matched_gt) and torch.equal(
        found.image, expected.image
    )
    assert torch.equal(found.teacher.logits, expected.teacher.logits)
    assert torch.equal(found.student.boxes, expected.student.boxes)


@pytest.mark.parametrize("kind", ["faster_rcnn", "retinanet", "gfl", "fcos"])
def test_no_instance_at_all(kind, tiny_model, see):
    teacher = tiny_model(kind)
    found = paired_predictions(teacher, teacher, PredictionRequest(), see(teacher, teacher, (0, 0)))
    assert len(found.matched_gt) == len(found.image) == len(found.student.boxes) == 0
    found = paired_predictions(
        teacher, teacher, PredictionRequest(num_proposals=3, min_score=0.0), see(teacher, teacher)
    )
    assert len(found.matched_gt) > 0


def test_classes_with_sigmoids_in_two_stages(tiny_model, see):
    teacher = tiny_model("faster_rcnn", ["MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True])
    found = paired_predictions(teacher, teacher, PredictionRequest(), see(teacher, teacher))
    assert found.activation == "sigmoid"
    assert found.student.logits.shape == found.teacher.logits.shape == (5, 3)  # no background


def test_every_sample_has_the_weight_of_its_owner(tiny_model, see):
    teacher = tiny_model("faster_rcnn")
    found = paired_predictions(
        teacher, teacher, PredictionRequest(num_proposals=7), see(teacher, teacher)
    )
    instance = {k: torch.arange(5.0) + 10 * i for i, k in enumerate(("cls", "box"), 1)}
    found.set_weights(instance, torch.tensor([0.1, 0.2, 0.3]))
    for s, matched_gt in enumerate(found.matched_gt.tolist()):
        if matched_gt == 5:
            assert found.weights["cls"][s] == torch.tensor([0.1, 0.2, 0.3])[found.image[s]]
            assert found.weights["box"][s] == 0
        else:
            assert [found.weights[k][s] for k in instance] == [10 + matched_gt, 20 + matched_gt]
    assert 0 < found.foreground.sum() < len(found.matched_gt)


def test_the_question_that_holds_all_questions():
    assert PredictionRequest.union([]) is None
    some = [PredictionRequest(num_proposals=9), PredictionRequest(min_score=0.3)]
    assert PredictionRequest.union(some) == PredictionRequest(num_proposals=9, min_score=0.3)
    assert PredictionRequest.union(
        [PredictionRequest(distributions=True), PredictionRequest()]
    ).distributions


ANCHORS = "MODEL.ANCHOR_GENERATOR."


@pytest.mark.parametrize(
    "teacher, student, opts, needed, message",
    [
        (
            "faster_rcnn",
            "retinanet",
            [],
            {},
            "Mask R-CNN on both sides, the student is a RetinaNet",
        ),
        ("retinanet", "faster_rcnn", [], {}, "the teacher is a RetinaNet, the student is a Gener"),
        ("cascade_rcnn", "faster_rcnn", [], {}, "the teacher is a CascadeROIHeads"),
        ("faster_rcnn", "cascade_rcnn", [], {}, "the student is a CascadeROIHeads"),
        (
            "retinanet",
            "retinanet",
            [f"{ANCHORS}SIZES", [[8, 12], [16, 20], [32, 48], [64, 80], [96, 128]]],
            {},
            r"on level p4 stride 16, offset 0 and anchors .*16x16, .* in the teacher, .*20x20",
        ),
        (
            "retinanet",
            "retinanet",
            [f"{ANCHORS}OFFSET", 0.5],
            {},
            "level p3 .*offset 0 .*offset 0.5",
        ),
        (
            "retinanet",
            "retinanet",
            ["MODEL.RETINANET.IN_FEATURES", ["p3", "p4"], f"{ANCHORS}SIZES", [[8, 12], [16, 24]]],
            {},
            "the teacher's heads read p3, p4, p5, p6, p7, the student's p3, p4: give both",
        ),
        (
            "faster_rcnn",
            "faster_rcnn",
            ["MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True],
            {},
            "USE_SIGMOID_CE is False in the teacher, True in the student",
        ),
        (
            "retinanet",
            "retinanet",
            [],
            {"distributions": True},
            "the teacher is a RetinaNet: leave",
        ),
    ],
)
def test_detectors_that_cannot_be_asked(teacher, student, opts, needed, message, tiny_model):
    teacher, student = tiny_model(teacher), tiny_model(student, opts)
    with pytest.raises(AIDError, match=f"DISTILLATION.LOSSES: SomeLoss .*{message}") as error:
        check_predictions(teacher, student, PredictionRequest(**needed), "SomeLoss")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["faster_rcnn", "mask_rcnn", "retinanet", "gfl", "fcos"])
def test_detectors_that_can_be_asked(kind, tiny_model):
    check_predictions(tiny_model(kind), tiny_model(kind, seed=1), PredictionRequest(), "SomeLoss")


@pytest.mark.parametrize(
    "teacher, student, whose", [("fcos", "gfl", "teacher"), ("gfl", "fcos", "student")]
)
def test_the_side_without_distributions_is_named(teacher, student, whose, tiny_model):
    with pytest.raises(AIDError, match=f"the {whose} is a FCOS: leave the loss out"):
        check_predictions(
            tiny_model(teacher),
            tiny_model(student),
            PredictionRequest(distributions=True),
            "SomeLoss",
        )


def test_a_family_without_predictions_is_named():
    with pytest.raises(
        AIDError, match="predictions of a Linear .* FCOS, GFL, GeneralizedRCNN, RetinaNet"
    ):
        check_predictions(
            torch.nn.Linear(1, 1), torch.nn.Linear(1, 1), PredictionRequest(), "SomeLoss"
        )
