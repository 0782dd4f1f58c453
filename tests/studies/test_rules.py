"""Rules under study: known values. What holds for every rule is in modeling/test_properties.py."""

import math

import pytest
import torch

from aid.modeling.instance_loss import DetectionQuality, InstanceLosses
from aid.modeling.weighting import WEIGHTING_REGISTRY, Evidence

StudentAwareWeighting = WEIGHTING_REGISTRY.get("StudentAwareWeighting")
QualityWeighting = WEIGHTING_REGISTRY.get("QualityWeighting")

LEVELS = {"p2": ((4, 6), 8), "p3": ((2, 3), 16)}
BOXES = [torch.tensor([[0.0, 0, 16, 16], [24, 8, 40, 24]]), torch.tensor([[8.0, 0, 24, 16]])]
# Of the teacher's best detection of each instance; the last one is not found.
BEST = DetectionQuality(torch.tensor([1.0, 0.125, 0.0]), torch.tensor([1.0, 0.5, 0.0]))
REST = [[0.5, 1.0], [0.25, 0.75]]


def losses(rest=REST, **parts):
    """Losses of 3 instances on 2 images and 2 levels."""
    parts = {k: torch.tensor(v) for k, v in parts.items()}
    return InstanceLosses(("p2", "p3"), parts, {"cls": torch.tensor(rest)}, torch.full((3, 2), 0.5))


def detected(best=BEST, cls=(1.0, 2.0, 3.0)):
    return Evidence(losses(cls=list(cls), box=[0.5, 0.5, 0.5]), quality=best)


def test_imitation_fades_where_the_student_is_better():
    # The student does not have the last part.
    teacher = losses(cls=[1.0, 5.0, 5.0], rpn_cls=[9.0, 9.0, 9.0])
    student = InstanceLosses(
        ("p3",),
        {"cls": torch.tensor([3.0, 4.0, math.nan])},
        {"cls": torch.tensor([[0.25], [2.0]])},
        torch.ones(3, 1),
    )
    rule = StudentAwareWeighting(alpha=0.5, background="loss")
    found = rule(Evidence(teacher, student=student), BOXES, LEVELS)
    torch.testing.assert_close(found.instance, torch.tensor([1.0, math.exp(-0.5), 1.0]))
    corner = [found.maps[level][:, 0, -1, 0].tolist() for level in LEVELS]
    assert corner[0] == [1, 1]  # the student's heads do not read p2
    assert corner[1] == pytest.approx([math.exp(-0.5 * 0.75), 1])


def test_excess_over_the_student_part_by_part():
    teacher = losses(cls=[1.0, 2.0, 3.0], box=[0.5, 0.25, 4.0], rpn_cls=[7.0, 8.0, 9.0])
    student = losses(cls=[0.5, 3.0, 1.0], box=[1.0, 0.0, 0.0], rpn_cls=[0.0, 0.0, 0.0])
    rule = StudentAwareWeighting(alpha=1.0)
    found = rule.by_part(Evidence(teacher, student=student), BOXES)
    torch.testing.assert_close(found.cls, torch.tensor([-0.5, 0.0, -2.0]).exp())
    torch.testing.assert_close(found.box, torch.tensor([0.0, -0.25, -4.0]).exp())


def test_the_parts_are_added_up_in_their_order():
    """Else the rounding, and after some iterations the weights, differ between two processes."""
    names = ("rpn_cls", "rpn_box", "cls", "box")
    numbers = torch.rand(4, 100, generator=torch.Generator().manual_seed(0)).exp()
    values = dict(zip(names, numbers, strict=True))
    rest, share = {"cls": torch.zeros(1, 1)}, torch.ones(100, 1)
    teacher = InstanceLosses(("p3",), {k: 10 * v for k, v in values.items()}, rest, share)
    student = InstanceLosses(("p3",), values, rest, share)
    loss, _ = StudentAwareWeighting(alpha=1.0).disbelief(Evidence(teacher, student=student))
    assert torch.equal(loss, sum(10 * v for v in values.values()) - sum(values.values()))


def test_quality_to_the_power_of_alpha():
    rule = QualityWeighting(alpha=0.5, background="loss")
    found = rule(detected(), BOXES, LEVELS)
    torch.testing.assert_close(found.instance, torch.tensor([1.0, 0.5, 0.1]))
    torch.testing.assert_close(found.maps["p2"][:, 0, 3, 0], torch.tensor([-0.25, -0.125]).exp())
    parts = rule.by_part(detected(), BOXES)  # of which a quality has none
    assert torch.equal(parts.cls, found.instance) and torch.equal(parts.box, found.instance)
