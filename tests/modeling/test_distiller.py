"""Inputs of the distillation losses of one teacher."""

import pytest
import torch

from aid.utils.errors import AIDError


@pytest.fixture
def inputs_of_losses(student_model, make_batch, storage):
    """A function (losses) -> {name: (student, teacher)}, their features in half precision."""

    def run(names):
        model, _ = student_model("retinanet", opts=["DISTILLATION.LOSSES", names])
        found = {}
        for name, loss in model.distillers[0].losses.items():
            loss.register_forward_pre_hook(
                lambda module, inputs, name=name: found.update({name: inputs[:2]})
            )
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = model(make_batch())
        assert all(x.isfinite() for x in losses.values())
        return found

    return run


def test_features_are_converted_once_for_all_losses(inputs_of_losses):
    found = inputs_of_losses(["PKDLoss", "FitNetLoss"])
    for first, second in zip(found["PKDLoss"], found["FitNetLoss"], strict=True):
        assert list(first) == ["p3", "p4", "p5", "p6", "p7"]
        assert all(x.dtype == torch.float32 and second[level] is x for level, x in first.items())


def test_losses_on_predictions_alone_get_no_features(inputs_of_losses):
    assert inputs_of_losses(["ResponseLoss", "CrossKDLoss"]) == {
        "ResponseLoss": ({}, {}),
        "CrossKDLoss": ({}, {}),
    }


@pytest.mark.parametrize("name", ["loss_cls", "loss_distill_pkd"])
def test_term_that_would_replace_another_loss_is_refused(name, student_model, make_batch, storage):
    losses = ["PKDLoss", "FitNetLoss"]
    model, _ = student_model("retinanet", opts=["DISTILLATION.LOSSES", losses])
    other = model.distillers[0].losses["FitNetLoss"]
    other.term_weights = dict.fromkeys([name], 1.0)
    with pytest.raises(AIDError, match=f"FitNetLoss returns a term {name}: its name must start"):
        model(make_batch())
