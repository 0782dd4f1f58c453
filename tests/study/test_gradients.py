"""Gradients of distillation and task losses."""

import pytest
import torch
from torch import nn

from aid_tools.study import compare_gradients


class Student(nn.Module):
    """Student with losses linear in its weights, so that their gradients are known."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(2, 1, bias=False)
        self.head = nn.Linear(2, 1, bias=False)

    def forward(self, batch):
        task, distillation = batch
        return {
            "loss_cls": self.backbone(task).sum() + self.head(task).sum(),
            "loss_distill_feature": self.backbone(distillation).sum(),
            "loss_distill_spatial": self.backbone(distillation).sum(),
        }


def test_known_ratio_and_cosine_of_gradients():
    batches = [
        (torch.tensor([3.0, 4.0]), torch.tensor([0.0, 5.0])),
        (torch.tensor([1.0, 0.0]), torch.tensor([0.0, 3.0])),
        (torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 0.0])),
    ]
    result = list(compare_gradients(Student(), batches))
    assert result == [pytest.approx(x) for x in [(2, 0.8), (6, 0), (2, -1)]]
