"""Rules under study: known values; modeling/test_properties.py tests common properties."""

import math

import pytest
import torch

from aid.config import load_config
from aid.modeling.families import DetectionQuality, PerInstanceLosses
from aid.modeling.weighting import (
    WEIGHTING_REGISTRY,
    TeacherMixing,
    TeacherStats,
    build_weighting,
)
from aid.utils.errors import AIDError

RelativeWeighting = WEIGHTING_REGISTRY.get("RelativeWeighting")
ClassWeighting = WEIGHTING_REGISTRY.get("ClassWeighting")
RULES = [
    WEIGHTING_REGISTRY.get(f"{name}Weighting")
    for name in ("StudentAware", "StudentRatio", "Quality", "ScoreTimesIoU", "Score")
]
StudentAwareWeighting, StudentRatioWeighting, *OF_DETECTIONS = RULES
QualityWeighting, ScoreTimesIoUWeighting, ScoreWeighting = OF_DETECTIONS

LEVELS = {"p2": ((4, 6), 8), "p3": ((2, 3), 16)}
BOXES = [torch.tensor([[0.0, 0, 16, 16], [24, 8, 40, 24]]), torch.tensor([[8.0, 0, 24, 16]])]
# Quality of the teacher's best detection of each instance; the last one is missed.
BEST = DetectionQuality(torch.tensor([1.0, 0.125, 0.0]), torch.tensor([1.0, 0.5, 0.0]))
REST = [[0.5, 1.0], [0.25, 0.75]]


def losses(rest=REST, **components):
    """Losses of 3 instances on 2 images and 2 levels."""
    components = {k: torch.tensor(v) for k, v in components.items()}
    return PerInstanceLosses(
        ("p2", "p3"), components, {"cls": torch.tensor(rest)}, torch.full((3, 2), 0.5)
    )


def detected(best=BEST, cls=(1.0, 2.0, 3.0)):
    return TeacherStats(losses(cls=list(cls), box=[0.5, 0.5, 0.5]), quality=best)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_relative_weights_are_scale_invariant(scale):
    rule = RelativeWeighting(alpha=0.7)
    stats = TeacherStats(losses(cls=[1 * scale, 2 * scale, 3 * scale]))
    actual = rule(stats, BOXES, LEVELS)
    torch.testing.assert_close(actual.instance, torch.tensor([-0.35, -0.7, -1.05]).exp())


def test_running_mean_of_relative_weights_is_saved():
    rule = RelativeWeighting(alpha=1.0, momentum=0.5)
    rule(TeacherStats(losses(cls=[2.0, 2.0, math.inf])), BOXES, LEVELS)  # 2 of loss 2
    actual = rule(TeacherStats(losses(cls=[4.0, 8.0, 6.0])), BOXES, LEVELS)  # and 3 of mean 6
    mean = (0.5 * 4 + 18) / (0.5 * 2 + 3)
    torch.testing.assert_close(actual.instance, (-torch.tensor([4.0, 8.0, 6.0]) / mean).exp())
    other = RelativeWeighting(alpha=1.0, momentum=0.5).eval()
    other.load_state_dict(rule.state_dict())
    again = other(TeacherStats(losses(cls=[mean] * 3)), BOXES, LEVELS)
    torch.testing.assert_close(again.instance, torch.full((3,), math.exp(-1)))
    assert torch.equal(other.sum_and_count, rule.sum_and_count)  # constant in eval mode


def test_running_mean_decays_per_iteration_not_per_micro_batch():
    rule = RelativeWeighting(alpha=1.0, momentum=0.25, steps=2)
    for loss in (8.0, 0.0, 0.0):  # after two micro-batches, its share is a quarter
        rule(TeacherStats(losses(cls=[loss] * 3)), BOXES, LEVELS)
    torch.testing.assert_close(rule.sum_and_count, torch.tensor([6.0, 0.75 + 1.5 + 3]))


def test_relative_weights_before_the_first_instance():
    rest = {"cls": torch.tensor([[0.5, 1.0]])}
    empty = PerInstanceLosses(("p2", "p3"), {"cls": torch.zeros(0)}, rest, torch.zeros(0, 2))
    actual = RelativeWeighting(alpha=1.0)(TeacherStats(empty), [torch.zeros(0, 4)], LEVELS)
    torch.testing.assert_close(actual.maps["p2"], torch.tensor(-0.5).exp().expand(1, 1, 4, 6))


def test_relative_component_weights_multiply_to_the_instance_weight():
    stats = TeacherStats(losses(cls=[1.0, 2.0, 3.0], box=[0.5, 0.25, 4.0]))
    rule = RelativeWeighting(alpha=0.7)
    whole = rule(stats, BOXES, LEVELS)
    memory = rule.sum_and_count.clone()
    torch.testing.assert_close(memory, torch.tensor([10.75, 3.0]))
    actual = rule.component_weights(stats, BOXES)
    torch.testing.assert_close(actual.cls * actual.box, whole.instance)
    assert torch.equal(rule.sum_and_count, memory)


def test_distrusted_class_has_weight_zero():
    given = losses(cls=[1.0, 9.0, math.inf], box=[1.0, 1.0, 1.0])
    stats = TeacherStats(given, torch.tensor([2, 0, 0]))
    rule = ClassWeighting(distrusted=[1, 2])
    actual = rule(stats, BOXES, LEVELS)
    assert actual.instance.tolist() == [0, 1, 0]
    assert actual.maps["p2"][:, 0, 3, 0].tolist() == [0.5, 1]  # the background weight
    assert actual.loss.tolist() == [2, 10, math.inf]
    components = rule.component_weights(stats, BOXES)
    assert components.cls.tolist() == [0, 1, 0] and components.box.tolist() == [0, 1, 1]


def test_distrusted_classes_are_those_of_the_dataset(repository):
    opts = ["AID.WEIGHTING", "ClassWeighting"]
    cfg = load_config(f"{repository}/configs/Quickstart/faster_rcnn_R18_from_R34.yaml", opts)
    assert build_weighting(cfg).distrusted == [2]
    cfg.DATASETS.TRAIN = ("coco_2017_train",)
    with pytest.raises(AIDError, match="name classes of coco_2017_train, which has person, "):
        build_weighting(cfg)


def test_weight_decreases_where_the_student_is_better():
    # The student lacks the last component.
    teacher = losses(cls=[1.0, 5.0, 5.0], rpn_cls=[9.0, 9.0, 9.0])
    student = PerInstanceLosses(
        ("p3",),
        {"cls": torch.tensor([3.0, 4.0, math.nan])},
        {"cls": torch.tensor([[0.25], [2.0]])},
        torch.ones(3, 1),
    )
    rule = StudentAwareWeighting(alpha=0.5, background="loss")
    actual = rule(TeacherStats(teacher, student=student), BOXES, LEVELS)
    torch.testing.assert_close(actual.instance, torch.tensor([1.0, math.exp(-0.5), 1.0]))
    corner = [actual.maps[level][:, 0, -1, 0].tolist() for level in LEVELS]
    assert corner[0] == [1, 1]  # the student's heads do not read p2
    assert corner[1] == pytest.approx([math.exp(-0.5 * 0.75), 1])


def test_component_weights_use_the_excess_over_the_student():
    teacher = losses(cls=[1.0, 2.0, 3.0], box=[0.5, 0.25, 4.0], rpn_cls=[7.0, 8.0, 9.0])
    student = losses(cls=[0.5, 3.0, 1.0], box=[1.0, 0.0, 0.0], rpn_cls=[0.0, 0.0, 0.0])
    rule = StudentAwareWeighting(alpha=1.0)
    actual = rule.component_weights(TeacherStats(teacher, student=student), BOXES)
    torch.testing.assert_close(actual.cls, torch.tensor([-0.5, 0.0, -2.0]).exp())
    torch.testing.assert_close(actual.box, torch.tensor([0.0, -0.25, -4.0]).exp())


def test_components_are_summed_in_a_fixed_order():
    """Another order would round differently, and the weights of processes would diverge."""
    names = ("rpn_cls", "rpn_box", "cls", "box")
    numbers = torch.rand(4, 100, generator=torch.Generator().manual_seed(0)).exp()
    values = dict(zip(names, numbers, strict=True))
    rest, share = {"cls": torch.zeros(1, 1)}, torch.ones(100, 1)
    teacher = PerInstanceLosses(("p3",), {k: 10 * v for k, v in values.items()}, rest, share)
    student = PerInstanceLosses(("p3",), values, rest, share)
    loss, _ = StudentAwareWeighting(alpha=1.0).teacher_error(TeacherStats(teacher, student=student))
    assert torch.equal(loss, sum(10 * v for v in values.values()) - sum(values.values()))


def test_weight_is_quality_to_the_power_of_alpha():
    rule = QualityWeighting(alpha=0.5, background="loss")
    actual = rule(detected(), BOXES, LEVELS)
    torch.testing.assert_close(actual.instance, torch.tensor([1.0, 0.5, 0.1]))
    torch.testing.assert_close(actual.maps["p2"][:, 0, 3, 0], torch.tensor([-0.25, -0.125]).exp())
    components = rule.component_weights(detected(), BOXES)  # equal for both components
    assert torch.equal(components.cls, actual.instance) and torch.equal(
        components.box, actual.instance
    )


def test_score_times_iou_is_the_square_of_the_quality():
    actual = ScoreTimesIoUWeighting(alpha=0.5)(detected(), BOXES, LEVELS)
    torch.testing.assert_close(actual.instance, torch.tensor([1.0, 0.25, 0.1]))
    squared = QualityWeighting(alpha=1.0)(detected(), BOXES, LEVELS)
    torch.testing.assert_close(actual.instance[:2], squared.instance[:2])


def test_scores_are_divided_by_their_mean_on_each_level():
    rule = ScoreWeighting(alpha=1.0, normalize=False, background="one")
    actual = TeacherMixing([rule])([rule(detected(), BOXES, LEVELS)])[0]
    torch.testing.assert_close(actual.instance, torch.tensor([1.0, 0.125, 0.01]))
    fine = actual.maps["p2"][:, 0]  # boxes of 2 x 2 cells
    mean = (4 * (1 + 0.125 + 0.01) + 36) / 48
    assert fine[:, 0, 0].tolist() == pytest.approx([1 / mean, 1 / mean])
    assert [fine[0, 1, 3].item(), fine[1, 0, 1].item()] == pytest.approx(
        [0.125 / mean, 0.01 / mean]
    )
    torch.testing.assert_close(actual.maps["p3"].mean(), torch.tensor(1.0))


def test_score_weighted_fitnet_equals_ultralytics():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.rand(2, 2, 5, 4, 6, generator=generator)
    rule = ScoreWeighting(alpha=1.0)
    weights = TeacherMixing([rule])([rule(detected(), BOXES, LEVELS)])[0].maps["p2"]
    score = 7 * weights  # only proportions matter
    squares = (teacher - student) ** 2
    expected = (score * squares).sum() / (score.sum() * 5)
    torch.testing.assert_close((weights * squares).mean(), expected)


def test_known_weights_of_the_student_teacher_loss_ratio():
    teacher = losses(cls=[1.0, 3.0, 0.0], box=[0.0, 0.0, 0.0], rpn_cls=[9.0, 9.0, 9.0])
    student = losses(cls=[1.0, 0.0, 3.0], box=[0.0, 0.0, 0.0], rest=[[2.0, 1.0], [0.25, 5.0]])
    stats = TeacherStats(teacher, student=student)
    del stats.student.components["box"]
    actual = StudentRatioWeighting(alpha=2.0, background="loss")(stats, BOXES, LEVELS)
    torch.testing.assert_close(actual.instance, torch.tensor([1 / 2, 1 / 17, 16 / 17]))
    ratios = [(3 / 1.5) ** 2, 1.0], [1.0, (6 / 1.75) ** 2]
    for i, level in enumerate(LEVELS):
        expected = [x[i] / (1 + x[i]) for x in ratios]
        assert actual.maps[level][:, 0, -1, 0].tolist() == pytest.approx(expected)
    half = StudentRatioWeighting(alpha=0.0)(stats, BOXES, LEVELS)
    assert all((x == 0.5).all() for x in half.maps.values())


def test_non_finite_student_loss_gives_a_neutral_weight():
    student = losses(cls=[math.nan, math.inf, 1.0])
    stats = TeacherStats(losses(cls=[1.0, 9.0, 1.0]), student=student)
    actual = StudentRatioWeighting(alpha=1.0)(stats, BOXES, LEVELS)
    assert actual.instance.tolist() == [0.5, 0.5, 0.5]


def worsened(number, loss=0.0, score=0.0, iou=0.0):
    """TeacherStats with a teacher that is worse on one instance by the given values."""
    cls = torch.tensor([1.0, 2.0, 3.0])
    best = DetectionQuality(*torch.tensor([[0.9, 0.5, 0.3]] * 2))
    cls[number] += loss
    best.score[number] -= score
    best.iou[number] -= iou
    teacher = losses(cls=cls.tolist(), box=[0.5, 0.5, 0.5])
    student = losses(cls=[0.5, 0.5, 0.5], box=[0.5, 0.5, 0.5])
    return TeacherStats(teacher, student=student, quality=best)


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("rule", RULES)
def test_worse_teacher_lowers_only_the_weight_of_that_instance(rule, number):
    changes = [{"score": 0.2}] if rule in OF_DETECTIONS else [{"loss": 1.0}]
    if rule in (QualityWeighting, ScoreTimesIoUWeighting):
        changes.append({"iou": 0.2})
    before = rule(alpha=0.5)(worsened(number), BOXES, LEVELS).instance
    for change in changes:
        after = rule(alpha=0.5)(worsened(number, **change), BOXES, LEVELS).instance
        assert (after < before).tolist() == [i == number for i in range(3)]
        assert (after == before).tolist() == [i != number for i in range(3)]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("rule", RULES)
def test_non_finite_teacher_loss_has_weight_zero(rule, bad):
    actual = rule(alpha=0.5)(worsened(1, loss=bad), BOXES, LEVELS)
    assert (actual.instance == 0).tolist() == [False, True, False]
    assert actual.maps["p2"][0, 0, 1, 3] == 0 and all(
        x.isfinite().all() for x in actual.maps.values()
    )
    if rule in OF_DETECTIONS:
        assert rule(alpha=0.5)(worsened(1, score=math.nan), BOXES, LEVELS).instance[1] == 0


@pytest.mark.parametrize("granularity", ["instance", "level", "image"])
@pytest.mark.parametrize("rule", RULES)
def test_batch_without_instances_has_positive_weights(rule, granularity):
    none = torch.zeros(0)
    components, rest = {"cls": none, "box": none}, {"cls": torch.tensor(REST)}
    empty = PerInstanceLosses(("p2", "p3"), components, rest, torch.zeros(0, 2))
    stats = TeacherStats(empty, student=empty, quality=DetectionQuality(none, none))
    boxes = [torch.zeros(0, 4)] * 2
    rule = rule(alpha=1.0, granularity=granularity)
    actual, component_weights = rule(stats, boxes, LEVELS), rule.component_weights(stats, boxes)
    assert actual.instance.shape == component_weights.cls.shape == (0,)
    assert all((x > 0).all() and x.isfinite().all() for x in actual.maps.values())
    assert component_weights.background.shape == (2,) and (component_weights.background > 0).all()
