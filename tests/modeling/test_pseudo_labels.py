"""Students on images without labels."""

import copy
from types import SimpleNamespace

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from aid.modeling.class_map import ClassMap
from aid.modeling.pseudo_labels import PseudoLabels, is_unlabeled, warn_of_unknown_classes
from aid.modeling.teacher import Teacher
from aid.modeling.teacher_check import compare
from aid.modeling.weighting import Weights
from aid.utils.errors import AIDError

LEVELS = {"p2": ((16, 24), 4), "p3": ((8, 12), 8)}
PLAIN = ["AID.GRANULARITY", "none"]


def found(boxes, scores, classes=None):
    """Detections of an image of 64x96 pixels."""
    instances = Instances((64, 96))
    instances.pred_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    instances.scores = torch.tensor(scores)
    instances.pred_classes = torch.tensor(classes or [0] * len(scores), dtype=torch.int64)
    return instances


def says(monkeypatch, *detections):
    """Replace the teacher's detections of the unlabeled images."""

    def detect(teacher, view):
        assert len(view.images) == len(detections)
        return list(detections)

    monkeypatch.setattr(Teacher, "detections", detect)


def without_labels(batch, numbers):
    """The batch with some samples as the loader gives unlabeled ones."""
    for number in numbers:
        batch[number]["instances"] = batch[number]["instances"][:0]
        batch[number]["unlabeled"] = True
    return batch


def step(model, batch, iteration=19, seed=5):
    torch.manual_seed(seed)
    with EventStorage(iteration) as storage, torch.jit.optimized_execution(False):
        losses = model(copy.deepcopy(batch))
        model.zero_grad()
        sum(losses.values()).backward()
    log = {name: value for name, (value, _) in storage.latest().items()}
    return losses, {k: p.grad for k, p in model.named_parameters()}, log


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_labels_are_detections_above_the_threshold(monkeypatch):
    boxes = [[0.0, 0, 10, 10], [5, 5, 20, 20], [30, 30, 30, 40], [1, 1, 9, 9]]
    says(monkeypatch, found(boxes, [0.9, 0.5, 0.8, 0.49], [2, 1, 0, 0]), found([], []))

    class View:
        images = [None, None]

    labels, none = PseudoLabels(score_thresh=0.5).label(Teacher.__new__(Teacher), View)
    assert labels.gt_boxes.tensor.tolist() == boxes[:2]  # the third has no area
    assert labels.gt_classes.tolist() == [2, 1]
    assert labels.scores.tolist() == pytest.approx([0.9, 0.5])
    assert len(none) == 0 and none.gt_boxes.tensor.shape == (0, 4)


def pseudo(boxes, scores):
    instances = found(boxes, scores)
    labels = Instances((64, 96))
    labels.gt_boxes, labels.gt_classes = instances.pred_boxes, instances.pred_classes
    labels.scores = instances.scores
    return labels


@pytest.mark.core
def test_weights_are_powers_of_the_score():
    labels = [pseudo([[0.0, 0, 16, 16], [48, 32, 64, 64]], [0.9, 0.4]), pseudo([], [])]
    weights = PseudoLabels(alpha=2.0).weights(labels, LEVELS)
    assert weights.instance.tolist() == pytest.approx([0.81, 0.16])
    assert weights.loss.tolist() == pytest.approx([0.1053605, 0.9162907])  # -log(score)
    assert torch.allclose(weights.instance, torch.exp(-2.0 * weights.loss))
    p2 = weights.maps["p2"][:, 0]
    assert p2[0, 0, 0] == weights.instance[0] and p2[0, 10, 14] == weights.instance[1]
    assert p2[0, 0, 23] == pytest.approx((0.81 + 0.16) / 2)  # the background
    assert (p2[1] == 1).all() and weights.maps["p3"].shape == (2, 1, 8, 12)
    parts = weights.components
    assert torch.equal(parts.cls, weights.instance) and torch.equal(parts.box, weights.instance)
    assert parts.background.tolist() == pytest.approx([0.485, 1.0])


def test_all_weights_are_1_by_default():
    labels = [pseudo([[0.0, 0, 16, 16], [48, 32, 64, 64]], [0.9, 0.4])]
    weights = PseudoLabels().weights(labels, LEVELS)
    assert all((x == 1).all() for x in (*weights.maps.values(), weights.instance))


def test_joined_weights_lack_what_one_lacks():
    whole = PseudoLabels(alpha=1.0).weights([pseudo([[0.0, 0, 16, 16]], [0.5])], LEVELS)
    plain = Weights({level: torch.ones(2, 1, *size) for level, (size, _) in LEVELS.items()})
    joined = Weights.cat(plain, whole)
    assert joined.instance is None and joined.loss is None and joined.components is None
    assert torch.equal(joined.maps["p2"][2:], whole.maps["p2"])
    assert Weights.cat(whole, whole).components.background.tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    "options, said",
    [
        ({"score_thresh": 1.5}, "UNLABELED.SCORE_THRESH is 1.5: it is the least score"),
        ({"score_thresh": float("nan")}, "UNLABELED.SCORE_THRESH is nan"),
        ({"alpha": -1.0}, "UNLABELED.ALPHA is -1.0: it must be 0 or more"),
    ],
)
def test_values_that_mean_nothing(options, said):
    with pytest.raises(AIDError, match=f"^{said}"):
        PseudoLabels(**options)


@pytest.mark.core
@pytest.mark.parametrize("kind", ["faster_rcnn", "retinanet", "gfl", "fcos"])
def test_right_labels_of_weight_1_are_the_ground_truth(
    kind, student_model, make_batch, monkeypatch
):
    """Also where the teacher's detections are the first thing that a step computes."""
    batch = make_batch((2, 3, 1))
    opts = [*PLAIN, "DISTILLATION.LOSSES", ["AttentionGuidedLoss", "ResponseLoss"]]
    labeled, _ = student_model(kind, opts=opts)
    expected, gradients, _ = step(labeled, batch)
    truth = [x["instances"] for x in batch[1:]]
    says(
        monkeypatch,
        *(found(x.gt_boxes.tensor.tolist(), [0.7] * len(x), x.gt_classes.tolist()) for x in truth),
    )
    model, _ = student_model(kind, opts=opts)
    losses, found_gradients, log = step(model, without_labels(batch, (1, 2)))
    assert equal(losses, expected) and equal(found_gradients, gradients)
    assert log["aid/num_pseudo_labels"] == 4
    assert log["aid/pseudo_score_mean"] == pytest.approx(0.7)


def test_without_unlabeled_images_the_keys_change_nothing(student_model, make_batch):
    batch = make_batch()
    expected, gradients, log = step(student_model("faster_rcnn")[0], batch)
    opts = ["UNLABELED.ALPHA", 3.0, "UNLABELED.SCORE_THRESH", 0.9]
    found_losses, found_gradients, _ = step(student_model("faster_rcnn", opts=opts)[0], batch)
    assert equal(found_losses, expected) and equal(found_gradients, gradients)
    assert not [name for name in log if "pseudo" in name]


# Teachers as they are: a random softmax of 4 classes is above 0.05, a focal head below.
@pytest.mark.parametrize(
    "student, teacher, rule",
    [
        ("faster_rcnn", "faster_rcnn", "ExponentialWeighting"),
        ("cascade_rcnn", "cascade_rcnn", "RelativeWeighting"),
        ("retinanet", "faster_rcnn", "StudentAwareWeighting"),
        ("gfl", "gfl", "QualityWeighting"),
        ("fcos", "retinanet", "ConstantWeighting"),
    ],
)
def test_labeled_images_keep_their_rule(student, teacher, rule, student_model, make_batch):
    """The teachers' weights of a labeled image are those of a batch without unlabeled ones."""
    model, _ = student_model(student, teacher, ["AID.WEIGHTING", rule])
    for module in model.modules():  # the student's features must not depend on the batch
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    seen = []
    mixing = model.mixing
    model.mixing = lambda weights: seen.append(mixing(weights)[0]) or mixing(weights)
    state = copy.deepcopy(model.state_dict())
    batch = make_batch((2, 1, 3))
    _, gradients, _ = step(model, without_labels(copy.deepcopy(batch), (2,)))
    assert all(gradient is not None for gradient in gradients.values())
    model.load_state_dict(state)
    step(model, batch[:2])
    mixed, alone = seen
    for level, maps in alone.maps.items():
        assert mixed.maps[level].shape[0] == 3
        assert torch.allclose(mixed.maps[level][:2], maps, atol=1e-6)
    if alone.instance is not None:
        assert torch.allclose(mixed.instance[:3], alone.instance, atol=1e-5)


def test_the_order_of_the_batch_is_free(student_model, make_batch):
    batch = without_labels(make_batch((2, 1, 3)), (2,))
    last, _ = student_model("faster_rcnn")
    expected, _, _ = step(last, batch)
    first, _ = student_model("faster_rcnn")
    losses, _, _ = step(first, [batch[2], *batch[:2]])
    assert equal(losses, expected)


@pytest.mark.parametrize("student", ["faster_rcnn", "retinanet", "gfl", "fcos"])
def test_no_detection_is_background(student, student_model, make_batch, monkeypatch, caplog):
    says(monkeypatch, found([], []))
    model, _ = student_model(student)
    losses, gradients, log = step(model, without_labels(make_batch((2, 3)), (1,)))
    assert all(x.isfinite() for x in losses.values())
    assert all(x is not None and x.isfinite().all() for x in gradients.values())
    assert log["aid/num_pseudo_labels"] == 0 and "aid/pseudo_score_mean" not in log
    assert "gives no pseudo-label to the unlabeled images of iteration" in caplog.text


def test_classes_that_the_teacher_cannot_label_are_warned_about(caplog):
    teacher = SimpleNamespace(name="x.yaml", class_map=None)
    warn_of_unknown_classes(teacher)
    teacher.class_map = ClassMap.from_entries(["car: Car"], ["car"], ["Car", "Tram"])
    assert caplog.text == ""
    warn_of_unknown_classes(teacher)
    assert "the teacher of x.yaml has no counterpart of Tram: on unlabeled" in caplog.text


@pytest.mark.core
def test_with_weight_0_labels_of_the_teacher_train_still(student_model, make_batch, monkeypatch):
    """As a plain Detectron2 step does on the same batch with these labels."""
    batch = make_batch((2, 3))
    boxes, classes = batch[1]["instances"].gt_boxes.tensor, batch[1]["instances"].gt_classes
    says(monkeypatch, found(boxes.tolist(), [0.9] * 3, classes.tolist()))
    model, cfg = student_model("faster_rcnn", opts=["DISTILLATION.WEIGHT", 0.0])
    losses, gradients, _ = step(model, without_labels(copy.deepcopy(batch), (1,)))
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    torch.manual_seed(0)
    expected, expected_gradients, _ = step(build_model(cfg).train(), batch)
    assert all(torch.equal(losses[k], x) for k, x in expected.items())
    assert all(torch.equal(gradients[k], x) for k, x in expected_gradients.items())


def test_while_imitation_pauses_unlabeled_images_are_left_out(student_model, make_batch):
    batch = make_batch((2, 3))
    opts = ["DISTILLATION.SCHEDULE.START_ITER", 30]
    expected, _, _ = step(student_model("faster_rcnn", opts=opts)[0], batch[:1])
    found_losses, _, log = step(
        student_model("faster_rcnn", opts=opts)[0], without_labels(batch, (1,))
    )
    assert equal(found_losses, expected)
    assert not [name for name in log if "pseudo" in name]


def test_the_teacher_draws_no_random_number_and_writes_no_log(
    student_model, make_batch, monkeypatch
):
    batch = without_labels(make_batch((2, 3)), (1,))
    model, _ = student_model("faster_rcnn", opts=["UNLABELED.SCORE_THRESH", 0.3])
    teacher = model.teacher
    with EventStorage() as storage:
        before = torch.get_rng_state()
        labels = teacher.detections(teacher.view(batch, (64, 96), "RGB"))
        assert torch.equal(torch.get_rng_state(), before) and not storage.latest()
    assert len(labels[1]) > 0


def test_labels_come_from_the_first_of_several_teachers(
    student_model, make_batch, further, monkeypatch
):
    asked = []
    original = Teacher.detections
    monkeypatch.setattr(
        Teacher, "detections", lambda *args: asked.append(args[0]) or original(*args)
    )
    model, _ = student_model("faster_rcnn", opts=further("retinanet"))
    losses, _, _ = step(model, without_labels(make_batch((2, 3)), (1,)))
    assert asked == [model.teacher]
    assert all(losses[f"loss_distill_feature{suffix}"] > 0 for suffix in ("", "_1"))


def test_a_teacher_without_the_class_of_a_label_does_not_teach_it(
    student_model, make_batch, further, monkeypatch
):
    boxes = [[4.0, 4, 30, 30], [40, 10, 80, 50]]
    says(monkeypatch, found(boxes, [0.9, 0.8], [0, 2]))
    opts = further(("faster_rcnn", ["MODEL.ROI_HEADS.NUM_CLASSES", 2]))
    opts += ["TEACHER.MORE_CLASS_MAPS", [["0: 0", "1: 1"]]]
    model, _ = student_model("faster_rcnn", opts=[*opts, "DISTILLATION.LOSSES", ["ResponseLoss"]])
    seen = []
    mixing = model.mixing
    model.mixing = lambda weights: seen.extend(mixing(weights)) or seen
    step(model, without_labels(make_batch((2, 3)), (1,)))
    first, second = (x.components for x in seen)
    assert (first.cls[-2:] > 0).all() and (second.box[-2:] > 0).all()
    assert second.cls[-2] > 0 and second.cls[-1] == 0


def test_the_comparison_with_the_teacher_needs_labels(student_model, make_batch):
    from aid.engine.hooks import CompareTeacher

    model, _ = student_model("faster_rcnn")
    batch = make_batch((2, 3))
    hook = CompareTeacher(model, 5)
    hook._teachers = [model.teacher]
    with EventStorage():
        hook._compare(model, (without_labels(copy.deepcopy(batch), (1,)),))
        expected = compare(model, [model.teacher], batch[:1])
    assert torch.equal(hook._losses[0], torch.stack(expected))


def test_a_sample_is_labeled_unless_it_says_otherwise(make_batch):
    assert not any(map(is_unlabeled, make_batch()))
    assert is_unlabeled(without_labels(make_batch((1,)), (0,))[0])
