"""Invariants of a distilled student relative to the plain Detectron2 detector."""

import copy
import math
import re

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from aid.modeling.losses import FitNetLoss, LocalisationLoss, NonLocalLoss
from aid.modeling.weighting import ExponentialWeighting
from aid.utils.errors import AIDError

pytestmark = pytest.mark.core

KINDS = ["faster_rcnn", "mask_rcnn", "cascade_rcnn", "retinanet", "gfl", "fcos"]
PAIRS = [(kind, kind) for kind in KINDS] + [
    ("retinanet", "faster_rcnn"),
    ("retinanet", "fcos"),
    ("fcos", "retinanet"),
    ("faster_rcnn", "retinanet"),
    ("retinanet", "gfl"),
    ("gfl", "faster_rcnn"),
]
ON_FEATURES = ["CWDLoss", "FGDLoss", "FitNetLoss", "MGDLoss", "PKDLoss"]
TERMS = {f"loss_distill_{x}" for x in ("feature", "channel", "spatial", "non_local")}


def with_losses(names):
    # Scores of random weights are low: this threshold selects many anchors.
    return ["DISTILLATION.LOSSES", names, "DISTILLATION.RESPONSE.MIN_SCORE", 0.005]


def step(model, batch, seed=5):
    """Losses and gradients of one step whose random numbers start at ``seed``."""
    torch.manual_seed(seed)
    # As the trainer does: TorchScript's first calls differ from the later ones in their rounding.
    with EventStorage(), torch.jit.optimized_execution(False):
        losses = model(copy.deepcopy(batch))
        model.zero_grad()
        sum(losses.values()).backward()
    return losses, {k: p.grad for k, p in model.named_parameters()}


# The combinations of lambda = 0, by kinds and options: losses on predictions run heads again, and
# rules that compare with the student compute its losses.
DENSE = ("retinanet", "gfl", "fcos")
UNWEIGHTED = [(*pair, []) for pair in PAIRS[:-4]]
UNWEIGHTED += [(*pair, ["AID.WEIGHTING", "StudentAwareWeighting"]) for pair in PAIRS[-4:]]
UNWEIGHTED += [("retinanet", "gfl", ["AID.WEIGHTING", "QualityWeighting"])]
UNWEIGHTED += [(x, x, with_losses(["ResponseLoss"])) for x in ("faster_rcnn", "mask_rcnn")]
UNWEIGHTED += [(x, x, with_losses(["ResponseLoss", "CrossKDLoss"])) for x in DENSE]
UNWEIGHTED += [(x, x, with_losses(ON_FEATURES)) for x in ("faster_rcnn", "retinanet")]
RECIPE = [*with_losses(["PKDLoss"]), "DISTILLATION.BALANCE", 10.0]
UNWEIGHTED += [(x, x, RECIPE) for x in ("faster_rcnn", "gfl")]


@pytest.mark.parametrize("student, teacher, opts", UNWEIGHTED)
def test_lambda_0_is_plain_detectron2_bit_for_bit(
    student, teacher, opts, student_model, tiny_model, make_batch
):
    batch = make_batch((2, 0, 3), masks=student == "mask_rcnn")
    distilled, _ = student_model(student, teacher, ["DISTILLATION.WEIGHT", 0.0, *opts])
    plain = tiny_model(student).train()
    for _ in range(2):  # the second step depends on the normalizer that the first updated
        expected, gradients = step(plain, batch)
        expected_next = torch.rand(1)
        actual, actual_gradients = step(distilled, batch)
        assert torch.equal(torch.rand(1), expected_next)
        terms = actual.keys() - expected.keys()
        assert terms and all(k.startswith("loss_distill") and actual[k] == 0 for k in terms)
        assert all(torch.equal(actual[k], v) for k, v in expected.items())
        assert all(torch.equal(actual_gradients[k], v) for k, v in gradients.items())
        buffers = dict(distilled.named_buffers())
        assert all(torch.equal(buffers[k], v) for k, v in plain.named_buffers())


@pytest.mark.parametrize("student, teacher", PAIRS)
def test_every_pair_has_terms_and_gradients_for_all_parameters(
    student, teacher, student_model, make_batch
):
    model, _ = student_model(student, teacher)
    for num_instances in ((2, 3), (0, 1), (0, 0)):
        batch = make_batch(num_instances, masks=student == "mask_rcnn")
        losses, gradients = step(model, batch)
        assert all(v.isfinite() for v in losses.values())
        assert all(losses[name] > 0 for name in TERMS)
        for name, gradient in gradients.items():
            assert gradient is not None, name


# What the rules compute from no instance is tested with them.
@pytest.mark.parametrize("rule", ["StudentAwareWeighting", "QualityWeighting"])
def test_batch_without_instances_has_losses_and_detections(rule, student_model, make_batch):
    model, _ = student_model("retinanet", "faster_rcnn", ["AID.WEIGHTING", rule])
    for num_instances in ((0, 0), (0, 1)):
        losses, _ = step(model, make_batch(num_instances))
        assert all(losses[name].isfinite() and losses[name] > 0 for name in TERMS)


def test_plain_distillation_equals_alpha_0_and_zero_coefficients(student_model, make_batch):
    batch = make_batch()
    plain, _ = student_model("faster_rcnn", opts=["AID.GRANULARITY", "none"])
    expected, gradients = step(plain, batch)
    alpha_0, _ = student_model("faster_rcnn", opts=["AID.ALPHA", 0.0])
    # A perfect teacher: all coefficients of its losses are 0.
    perfect, _ = student_model("faster_rcnn")
    perfect.weighting.coefficients = dict.fromkeys(("cls", "box", "rpn_cls", "rpn_box"), 0.0)
    for model in (alpha_0, perfect):
        actual, actual_gradients = step(model, batch)
        assert all(torch.equal(actual[k], v) for k, v in expected.items())
        assert all(torch.equal(actual_gradients[k], v) for k, v in gradients.items())


def test_larger_alpha_reduces_every_term(student_model, make_batch):
    terms = []
    for alpha in (0.0, 0.05, 0.2):
        model, _ = student_model("faster_rcnn", opts=["AID.ALPHA", alpha])
        losses, _ = step(model, make_batch())
        terms.append([losses[k].item() for k in sorted(TERMS)])
    for stronger, weaker in zip(terms, terms[1:], strict=False):
        assert all(a > b > 0 for a, b in zip(stronger, weaker, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_state_dict_is_plain_detectron2_plus_adapters(kind, student_model, tiny_model, make_batch):
    keys = [f"MODEL.{x}.SCORE_THRESH_TEST" for x in ("RETINANET", "GFL", "FCOS")]
    opts = [x for key in keys for x in (key, 0.0)]
    model, _ = student_model(kind, opts=opts)
    plain = tiny_model(kind, opts, seed=99)
    state = model.state_dict()
    student = {k: v for k, v in state.items() if not k.startswith("distillation.")}
    assert len(student) < len(state)
    result = plain.load_state_dict(student)
    assert not result.missing_keys and not result.unexpected_keys
    batch = make_batch(masks=kind == "mask_rcnn")
    with torch.no_grad():
        expected, actual = plain.eval()(batch), model.eval()(batch)
    for a, b in zip(expected, actual, strict=True):
        a, b = a["instances"].get_fields(), b["instances"].get_fields()
        assert torch.equal(a["scores"], b["scores"]) and len(a["scores"]) > 0
        assert torch.equal(a["pred_boxes"].tensor, b["pred_boxes"].tensor)


def test_student_without_teacher_infers_but_refuses_training(student_config, make_batch):
    cfg = student_config("faster_rcnn")
    cfg.TEACHER.WEIGHTS = "nowhere.pth"  # never read
    model = build_model(cfg).eval()
    assert model(make_batch())[0]["instances"] is not None
    with pytest.raises(AIDError, match="has no teacher: call build_distillation"):
        model.train()(make_batch())


def test_non_finite_loss_of_one_instance_keeps_terms_finite(
    student_model, make_batch, storage, monkeypatch
):
    model, _ = student_model("faster_rcnn")
    original = model.teacher.per_instance_losses

    def broken(*args):
        losses = original(*args)
        losses.components["cls"][1] = torch.nan
        return losses

    monkeypatch.setattr(model.teacher, "per_instance_losses", broken)
    losses = model(make_batch())
    assert all(losses[k].isfinite() and losses[k] > 0 for k in TERMS)
    log = storage.latest()
    assert log["aid/num_non_finite"][0] == 1 and log["aid/weight_min"][0] == 0
    assert log["aid/teacher_loss"][0] > 0


def test_teacher_without_any_finite_loss_is_reported(
    student_model, make_batch, storage, monkeypatch, caplog
):
    model, _ = student_model("faster_rcnn")
    original = model.teacher.per_instance_losses

    def broken(*args):
        losses = original(*args)
        losses.components["cls"][:] = torch.inf
        return losses

    model(make_batch())
    assert "finite on none" not in caplog.text
    monkeypatch.setattr(model.teacher, "per_instance_losses", broken)
    model(make_batch())
    assert "loss is finite on none of 5 instances of iteration 19" in caplog.text


def test_log_keeps_the_names_of_the_plain_detector(student_model, tiny_model, make_batch, storage):
    distilled, _ = student_model("cascade_rcnn")
    with EventStorage(19) as plain:
        tiny_model("cascade_rcnn").train()(make_batch())
    distilled(make_batch())
    aid = {name for name in storage.latest() if name.startswith("aid/")}
    assert set(storage.latest()) - aid == set(plain.latest())
    names = "weight_mean weight_min weight_below_half teacher_loss num_non_finite num_instances"
    names += " map_mean distillation_weight"
    assert aid == {f"aid/{name}" for name in names.split()}
    assert storage.latest()["aid/num_instances"][0] == 5


def test_logged_diagnostics_equal_the_weights(student_model, make_batch, storage, monkeypatch):
    model, _ = student_model("faster_rcnn")
    seen = []
    original = ExponentialWeighting.__call__
    monkeypatch.setattr(
        ExponentialWeighting, "__call__", lambda *a: seen.append(original(*a)) or seen[-1]
    )
    model(make_batch())
    log = {k: v[0] for k, v in storage.latest().items()}
    weights = seen[0]
    assert log["aid/weight_mean"] == pytest.approx(weights.instance.mean().item())
    assert log["aid/weight_below_half"] == pytest.approx((weights.instance < 0.5).float().mean())
    assert log["aid/teacher_loss"] == pytest.approx(weights.loss.mean().item(), rel=1e-5)


def test_weight_map_image_every_vis_period(student_model, make_batch):
    model, _ = student_model("faster_rcnn", opts=["VIS_PERIOD", 2])
    with EventStorage(4) as storage:
        model(make_batch((2, 1)))
        names = [name for name, *_ in storage._vis_data]
        image = storage._vis_data[names.index(next(n for n in names if n.startswith("aid/")))][1]
    assert image.shape == (3, 2 * 640, 960)
    # The image is not uniform.
    assert image.std() > 0
    with EventStorage(5) as storage:
        model(make_batch())
        assert not storage._vis_data


def test_empty_or_unknown_losses_are_refused(student_config):
    cfg = student_config("faster_rcnn", opts=["DISTILLATION.LOSSES", []])
    with pytest.raises(AIDError, match="DISTILLATION.LOSSES is empty"):
        build_model(cfg).build_distillation(cfg)
    cfg = student_config("faster_rcnn", opts=["DISTILLATION.LOSSES", ["FGD"]])
    with pytest.raises(AIDError, match=r"'FGD' is unknown \(did you mean FGDLoss\?\), choose"):
        build_model(cfg).build_distillation(cfg)
    with pytest.raises(AIDError, match="DISTILLATION.SCALE: 'SUM'"):  # as with a LazyConfig
        NonLocalLoss(channels={"p2": (4, 4)}, subsample=[2], weight=1.0, scale="SUM")
    cfg = student_config("faster_rcnn", opts=["DISTILLATION.SCALE", "mean"])
    with pytest.raises(AIDError, match="DISTILLATION.SCALE: 'mean'"):
        build_model(cfg).build_distillation(cfg)


WEIGHTS = ["WEIGHT", "NON_LOCAL.WEIGHT", "ATTENTION.SPATIAL_WEIGHT"]


@pytest.mark.parametrize(
    "key, value", [*((key, -1e-9) for key in WEIGHTS), ("WEIGHT", math.nan), ("WEIGHT", math.inf)]
)
def test_negative_or_non_finite_weight_is_refused(key, value, student_config):
    cfg = student_config("faster_rcnn", opts=[f"DISTILLATION.{key}", value])
    with pytest.raises(AIDError, match=f"^DISTILLATION.{key} is {value}: it must be 0 or more"):
        build_model(cfg).build_distillation(cfg)


@pytest.mark.parametrize("build", [FitNetLoss, LocalisationLoss])
def test_negative_weight_is_refused_without_a_config(build):
    kwargs = {"channels": {"p2": (4, 4)}} if build is FitNetLoss else {"temperature": 1.0}
    with pytest.raises(AIDError, match=f"weight of loss_.* in {build.__name__} is -2.0: it must"):
        build(weight=-2.0, **kwargs)


@pytest.mark.parametrize("component", ["CLS", "BOX", "RPN_CLS", "RPN_BOX", "CTR"])
def test_negative_coefficient_is_refused(component, student_config):
    key = f"AID.COEFFICIENTS.{component}"
    cfg = student_config("faster_rcnn", opts=[key, -0.5])
    with pytest.raises(AIDError, match=f"^{key} is -0.5: it must be 0 or more, and finite$"):
        build_model(cfg).build_distillation(cfg)


def test_duplicate_loss_is_refused(student_config):
    cfg = student_config("faster_rcnn", opts=["DISTILLATION.LOSSES", ["PKDLoss"] * 2])
    with pytest.raises(AIDError, match="^DISTILLATION.LOSSES names PKDLoss twice"):
        build_model(cfg).build_distillation(cfg)
    cfg.DISTILLATION.LOSSES = [["PKDLoss"]]
    with pytest.raises(AIDError, match="^DISTILLATION.LOSSES: .* is unknown"):
        build_model(cfg).build_distillation(cfg)


@pytest.mark.parametrize("sizes", [[], [0], [8, -2], [2.5], ["8"], [True]])
def test_invalid_subsampling_kernels_are_refused(sizes, student_config):
    key = "DISTILLATION.NON_LOCAL.SUBSAMPLE"
    cfg = student_config("faster_rcnn", opts=[key, sizes])
    with pytest.raises(AIDError, match=rf"^{key} is {re.escape(str(sizes))}: name kernel sizes"):
        build_model(cfg).build_distillation(cfg)


def test_loss_without_terms_is_an_error(student_model, make_batch, storage):
    model, _ = student_model("faster_rcnn")
    model.distillers[0].losses = nn.ModuleDict({"Silent": Silent()})
    with pytest.raises(AIDError, match="no distillation term"):
        model(make_batch())


class Silent(nn.Module):
    def forward(self, *args):
        return {}


def test_log_lists_teacher_losses_and_weighting(student_config, caplog):
    cfg = student_config("retinanet", "faster_rcnn")
    with caplog.at_level("INFO"):
        build_model(cfg).build_distillation(cfg)
    message = next(m for m in caplog.messages if m.startswith("Distillation:"))
    for entry in (cfg.TEACHER.CONFIG_FILE, cfg.TEACHER.WEIGHTS, "M parameters", "p3 (stride 8)"):
        assert entry in message
    assert "AttentionGuidedLoss(temperature 0.5" in message
    assert "NonLocalLoss(non_local 4e-05" in message
    assert "ExponentialWeighting by instance" in message and "alpha 0.1" in message


def test_student_whose_losses_cannot_be_had_is_refused_for_a_rule_that_needs_them(student_model):
    rpn = ["MODEL.RPN.IN_FEATURES", ["p3", "p4", "p5"], "MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p3"]]
    opts = [*rpn, "MODEL.ANCHOR_GENERATOR.SIZES", [[8]] * 3]
    opts += ["AID.WEIGHTING", "StudentAwareWeighting", "DISTILLATION.LOSSES", ["PKDLoss"]]
    message = "^StudentAwareWeighting needs losses of the student: MODEL.ROI_HEADS"
    with pytest.raises(AIDError, match=message):
        student_model("faster_rcnn", "retinanet", opts)
