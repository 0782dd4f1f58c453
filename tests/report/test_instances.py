"""Teacher's losses on labels, and groups of labels."""

import pytest
import torch
from detectron2.structures import BoxMode
from PIL import Image

from aid.data.ignore_regions import ignore_boxes
from aid.modeling.teacher import build_teacher
from aid_tools.report.instances import group_of, groups_of, image_stats
from aid_tools.visualization.sample import load_sample

CLEAN = {"spoiled": None, "visible": 0.9}
CLASSES = ["Car", "Cyclist"]


@pytest.mark.parametrize(
    "side, known, expected",
    [
        (40, CLEAN, "Cyclist"),
        (15, CLEAN, "tiny"),
        (15, {**CLEAN, "visible": 0.3}, "mostly hidden"),
        (15, {"spoiled": "class", "visible": 0.3}, "wrong class"),
        (40, {"spoiled": "jitter", "visible": 0.9}, "jittered box"),
        (40, {"spoiled": "missing", "visible": 0.9}, "Cyclist"),
        (40, None, "Cyclist"),
        (15, None, "tiny"),
    ],
)
def test_instance_is_in_the_first_matching_group(side, known, expected):
    annotation = {"occluded": 1, "category_id": 1}
    actual = group_of(annotation, side, known, CLASSES)
    assert actual == expected and actual in groups_of(CLASSES)


def test_occlusion_labels_of_kitti_are_the_fallback():
    annotation = {"occluded": 2, "category_id": 0}
    assert group_of(annotation, 40, None, CLASSES) == "mostly hidden"
    assert group_of(annotation, 40, CLEAN, CLASSES) == "Car"
    assert group_of({"category_id": 0}, 40, None, CLASSES) == "Car"


def test_class_named_like_a_group_has_its_own_group():
    classes = ["tiny", "tiny (class)", "Car (class)"]
    groups = groups_of(classes)
    assert len(set(groups)) == len(groups)
    for k, expected in enumerate(groups[:3]):
        assert group_of({"category_id": k}, 40, None, classes) == expected
    assert groups[:3] == ["tiny (class)", "tiny (class) (class)", "Car (class)"]
    assert group_of({"category_id": 0}, 15, None, classes) == "tiny"


@pytest.fixture
def record(tmp_path):
    Image.new("RGB", (192, 128), (10, 20, 30)).save(tmp_path / "a.png")
    box = {"bbox_mode": BoxMode.XYXY_ABS, "iscrowd": 0}
    return {
        "file_name": str(tmp_path / "a.png"),
        "height": 128,
        "width": 192,
        "annotations": [
            {**box, "bbox": [20, 30, 60, 90], "category_id": 2},
            {**box, "bbox": [0, 0, 190, 120], "category_id": 0, "iscrowd": 1},
            {**box, "bbox": [100, 30, 150, 90], "category_id": 1},
        ],
    }


def test_sample_is_resized_with_boxes_and_without_crowds(student_config, record):
    cfg = student_config("faster_rcnn")  # MIN_SIZE_TEST 64: half of this image
    sample, annotations = load_sample(cfg, record)
    assert sample["image"].shape == (3, 64, 96)
    assert sample["image"][:, 0, 0].tolist() == [10, 20, 30]
    assert [a["category_id"] for a in annotations] == [2, 1]
    assert sample["instances"].gt_classes.tolist() == [2, 1]
    assert sample["instances"].gt_boxes.tensor.tolist() == [[10, 15, 30, 45], [50, 15, 75, 45]]


def test_crowds_are_regions_of_the_ground_truth(student_config, record):
    cfg = student_config("faster_rcnn", opts=["INPUT.IGNORE_REGIONS", True])
    sample, annotations = load_sample(cfg, record)
    assert len(annotations) == len(sample["instances"]) == 2
    assert ignore_boxes(sample["instances"]).tensor.tolist() == [[0, 0, 95, 60]]


def test_weights_equal_those_of_training(student_config, student_model, record):
    """The report uses the same losses and weights as training on the image."""
    (seen,) = image_stats(student_config("faster_rcnn"), [record])
    assert torch.allclose(seen.weights, torch.exp(-0.1 * seen.losses))
    model, cfg = student_model("faster_rcnn")
    sample, _ = load_sample(cfg, record)
    view = model.teacher.view([sample], (64, 96), cfg.INPUT.FORMAT)
    expected = model.teacher.per_instance_losses(view, [sample["instances"]])
    assert torch.equal(seen.losses, sum(expected.components.values()))
    assert seen.boxes.shape == (2, 4) and seen.image.shape == (64, 96, 3)
    assert seen.parts.keys() == expected.components.keys()


def test_components_are_multiplied_by_their_coefficients(student_config, record):
    (plain,) = image_stats(student_config("faster_rcnn"), [record])
    (seen,) = image_stats(
        student_config("faster_rcnn", opts=["AID.COEFFICIENTS.CLS", 3.0]), [record]
    )
    assert torch.equal(seen.parts["cls"], 3 * plain.parts["cls"])
    assert torch.equal(seen.parts["box"], plain.parts["box"])
    torch.testing.assert_close(sum(seen.parts.values()), seen.losses)


def test_rules_get_the_inputs_that_they_require(record, student_config, tiny_model):
    cfg = student_config("faster_rcnn", opts=["AID.WEIGHTING", "RelativeWeighting"])
    memory = {"sum_and_count": torch.tensor([20.0, 4.0])}
    (seen,) = image_stats(cfg, [record], memory)
    torch.testing.assert_close(seen.weights, torch.exp(-cfg.AID.ALPHA * seen.losses / 5))
    (seen,) = image_stats(
        student_config("faster_rcnn", opts=["AID.WEIGHTING", "QualityWeighting"]), [record]
    )
    assert ((0 < seen.weights) & (seen.weights <= 1)).all()
    cfg = student_config("faster_rcnn", "retinanet", ["AID.WEIGHTING", "StudentAwareWeighting"])
    student = tiny_model("faster_rcnn")
    (seen,) = image_stats(cfg, [record], student=student)
    assert ((0 < seen.weights) & (seen.weights <= 1)).all()
    cfg.TEACHER.CONFIG_FILE, cfg.TEACHER.WEIGHTS = (
        student_config("faster_rcnn").TEACHER[key] for key in ("CONFIG_FILE", "WEIGHTS")
    )
    teacher = build_teacher(cfg).detector
    (seen,) = image_stats(cfg, [record], student=teacher)  # equal to the teacher
    assert seen.weights.tolist() == [1, 1]
