"""What each weighting rule makes of the teacher's loss, as a figure."""

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..modeling.instance_loss import DetectionQuality, InstanceLosses
from ..modeling.weighting import (
    Evidence,
    ExponentialWeighting,
    QualityWeighting,
    RelativeWeighting,
    StudentAwareWeighting,
    Weighting,
)

__all__ = ["draw_rules"]

MAX_LOSS = 12.0


def draw_rules() -> Figure:
    """w against D for the rules of the teacher's loss, and against q for that of its detections."""
    loss = torch.linspace(0, MAX_LOSS, 241)
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
    for alpha in (0.1, 0.3):
        rule = ExponentialWeighting(alpha=alpha)
        axes[0].plot(loss, _weights(rule, loss), label=f"exponential, alpha {alpha}")
    for mean in (2.0, 5.0):
        rule = RelativeWeighting(alpha=1.0, momentum=0.99).eval()
        rule.sum_and_count.copy_(torch.tensor([mean, 1.0]))
        label = f"relative, alpha 1, mean D {mean:g}"
        axes[0].plot(loss, _weights(rule, loss), "--", label=label)
    for student in (2.0, 5.0):
        rule = StudentAwareWeighting(alpha=1.0)
        weights = _weights(rule, loss, student=_losses(torch.full_like(loss, student)))
        axes[0].plot(loss, weights, ":", label=f"student-aware, alpha 1, student's D {student:g}")
    axes[0].set(xlabel="teacher's loss D", ylabel="weight w", ylim=(0, 1.02), xlim=(0, MAX_LOSS))
    quality = torch.linspace(0, 1, 201)
    for alpha in (0.5, 1.0, 2.0):
        found = DetectionQuality(quality, quality)
        weights = _weights(QualityWeighting(alpha=alpha), torch.zeros(201), quality=found)
        axes[1].plot(quality, weights, label=f"quality, alpha {alpha:g}")
    axes[1].set(xlabel="quality q of the teacher's best detection", xlim=(0, 1))
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    return figure


def _losses(loss: Tensor) -> InstanceLosses:
    """One image with an instance for each loss."""
    share = torch.ones(len(loss), 1)
    return InstanceLosses(("p3",), {"cls": loss}, {"cls": torch.zeros(1, 1)}, share)


def _weights(rule: Weighting, loss: Tensor, **evidence) -> Tensor:
    boxes = [torch.zeros(len(loss), 4)]
    return rule(Evidence(_losses(loss), **evidence), boxes, {}).instance
