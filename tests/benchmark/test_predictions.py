"""Benchmark of losses on predictions, forward and backward."""

import pytest
import torch

from aid_tools.benchmark.cases import make_cases
from aid_tools.benchmark.nets import Nets


@pytest.mark.parametrize(
    "kind, loss, parts",
    [
        ("faster_rcnn", "ResponseLoss", 2),
        ("retinanet", "ResponseLoss", 2),
        ("gfl", "LocalisationLoss", 1),
        ("fcos", "CrossKDLoss", 2),
    ],
)
def test_gradients_reach_the_predictions(
    kind, loss, parts, student_config, make_batch, monkeypatch, storage
):
    cfg = student_config(kind, opts=["DISTILLATION.LOSSES", [loss]])
    batch = make_batch()
    cases = make_cases(Nets(cfg, False, batch[:1]), batch)
    found, original = [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: found.extend(original(*a, **k)))
    for _ in range(2):  # the recorded inputs serve every round
        found.clear()
        cases[loss]()
        gradients = [x for x in found if x is not None]
        assert len(gradients) == parts and all(x.abs().sum() > 0 for x in gradients)
