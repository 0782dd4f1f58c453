"""Figure of the weighting rules: weight w over the teacher's loss D."""

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from aid.modeling.families import PerInstanceLosses
from aid.modeling.weighting import ExponentialWeighting, RelativeWeighting, TeacherStats, Weighting

__all__ = ["draw_rules"]

MAX_LOSS = 12.0


def draw_rules() -> Figure:
    """Draw w over D for the exponential and relative rules."""
    loss = torch.linspace(0, MAX_LOSS, 241)
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    for alpha in (0.1, 0.3):
        rule = ExponentialWeighting(alpha=alpha)
        axis.plot(loss, _weights(rule, loss), label=f"exponential, alpha {alpha}")
    for mean in (2.0, 5.0):
        rule = RelativeWeighting(alpha=1.0, momentum=0.99).eval()
        rule.sum_and_count.copy_(torch.tensor([mean, 1.0]))
        label = f"relative, alpha 1, mean D {mean:g}"
        axis.plot(loss, _weights(rule, loss), "--", label=label)
    axis.set(xlabel="teacher's loss D", ylabel="weight w", ylim=(0, 1.02), xlim=(0, MAX_LOSS))
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    return figure


def _weights(rule: Weighting, loss: Tensor) -> Tensor:
    """Weights of one image with an instance for each loss."""
    share = torch.ones(len(loss), 1)
    losses = PerInstanceLosses(("p3",), {"cls": loss}, {"cls": torch.zeros(1, 1)}, share)
    return rule(TeacherStats(losses), [torch.zeros(len(loss), 4)], {}).instance
