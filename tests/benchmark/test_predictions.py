"""Benchmark of losses on predictions, forward and backward."""

import pytest
import torch

from aid_tools.benchmark.cases import make_cases
from aid_tools.benchmark.nets import Nets


@pytest.mark.parametrize(
    "kind, loss, num_terms",
    [
        ("faster_rcnn", "ResponseLoss", 2),
        ("retinanet", "ResponseLoss", 2),
        ("gfl", "LocalisationLoss", 1),
        ("fcos", "CrossKDLoss", 2),
    ],
)
def test_benchmark_computes_gradients_of_predictions(
    kind, loss, num_terms, student_config, make_batch, monkeypatch, storage
):
    cfg = student_config(kind, opts=["DISTILLATION.LOSSES", [loss]])
    batch = make_batch()
    cases = make_cases(Nets(cfg, batch[:1]), batch)
    gradients_found, original = [], torch.autograd.grad
    monkeypatch.setattr(
        torch.autograd, "grad", lambda *a, **k: gradients_found.extend(original(*a, **k))
    )
    for _ in range(2):  # recorded inputs are reused in every round
        gradients_found.clear()
        cases[loss]()
        gradients = [x for x in gradients_found if x is not None]
        assert len(gradients) == num_terms and all(x.abs().sum() > 0 for x in gradients)
