"""Further feature losses in a detector; tests/test_combinations.py trains with them."""

import copy

import pytest
import torch
from detectron2.utils.events import EventStorage

LOSSES = ["CWDLoss", "FGDLoss", "FitNetLoss", "MGDLoss", "PKDLoss"]


def losses_of(model, batch, seed=5):
    torch.manual_seed(seed)
    with EventStorage(19), torch.jit.optimized_execution(False):
        return model(copy.deepcopy(batch))


@pytest.mark.parametrize("name", LOSSES)
def test_loss_is_linear_in_a_constant_weight(name, student_model, make_batch):
    values = []
    for opts in (
        ["AID.GRANULARITY", "none"],
        ["AID.WEIGHTING", "ConstantWeighting", "AID.CONSTANT", 0.25],
    ):
        model, _ = student_model("faster_rcnn", opts=["DISTILLATION.LOSSES", [name], *opts])
        losses = losses_of(model, make_batch())
        values.append({k: v.item() for k, v in losses.items() if "distill" in k})
    assert values[1] == {k: pytest.approx(0.25 * v, rel=1e-4) for k, v in values[0].items()}


@pytest.mark.parametrize("kind", ["faster_rcnn", "retinanet"])
def test_lambda_0_is_plain_detectron2_bit_for_bit(kind, student_model, tiny_model, make_batch):
    batch = make_batch((2, 0, 3))
    opts = ["DISTILLATION.LOSSES", LOSSES, "DISTILLATION.WEIGHT", 0.0]
    distilled, _ = student_model(kind, opts=opts)
    plain = tiny_model(kind).train()
    expected = losses_of(plain, batch)
    expected_next = torch.rand(1)
    actual = losses_of(distilled, batch)
    assert torch.equal(torch.rand(1), expected_next)
    assert all(torch.equal(actual[k], v) for k, v in expected.items())
    sum(expected.values()).backward()
    sum(actual.values()).backward()
    gradients = {k: p.grad for k, p in distilled.named_parameters()}
    assert all(torch.equal(gradients[k], p.grad) for k, p in plain.named_parameters())


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_computed_in_float32_under_amp(name, student_model, make_batch):
    model, _ = student_model("faster_rcnn", opts=["DISTILLATION.LOSSES", [name]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = losses_of(model, make_batch())
    terms = [v for k, v in losses.items() if "distill" in k]
    assert all(v.dtype == torch.float32 and v.isfinite() for v in terms)


def test_running_statistics_exclude_the_teachers_proposals(student_model, make_batch):
    """ResponseLoss runs the student's box head again, on the teacher's proposals."""
    head = {"NAME": "FastRCNNConvFCHead", "NUM_CONV": 1, "CONV_DIM": 8, "NUM_FC": 1, "NORM": "BN"}
    opts = [x for k, v in head.items() for x in (f"MODEL.ROI_BOX_HEAD.{k}", v)]
    actual = []
    for loss in ("FitNetLoss", "ResponseLoss"):
        model, _ = student_model("faster_rcnn", opts=[*opts, "DISTILLATION.LOSSES", [loss]])
        torch.manual_seed(0)
        with EventStorage():
            model(make_batch())
        norm = model.roi_heads.box_head.conv1.norm
        actual.append(torch.cat([norm.running_mean, norm.running_var]))
        assert norm.momentum > 0
    assert torch.equal(*actual)
