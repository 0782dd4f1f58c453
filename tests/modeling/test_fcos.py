"""AID's FCOS from YAML against Detectron2's FCOS from its LazyConfig."""

import copy

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import instantiate
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch import fcos
from detectron2.utils.events import EventStorage
from torch import nn

from aid.config import load_config

LOSSES = {"loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr"}

SETTINGS = (
    "num_classes",
    "head_in_features",
    "center_sampling_radius",
    "focal_loss_alpha",
    "focal_loss_gamma",
    "test_score_thresh",
    "test_topk_candidates",
    "test_nms_thresh",
    "max_detections_per_image",
)


def make_confident(model):
    """Give an untrained head confident detections with boxes of some size."""
    nn.init.normal_(model.head.cls_score.weight, std=0.3)
    nn.init.ones_(model.head.cls_score.bias)
    nn.init.ones_(model.head.bbox_pred.bias)


def losses_of(model, batch, times=1):
    with EventStorage(), torch.jit.optimized_execution(False):
        for _ in range(times):
            losses = model.train()(copy.deepcopy(batch))
    return losses


@pytest.fixture
def both(repository, tmp_path):
    """AID's FCOS with ResNet-50 and Detectron2's, with the same weights."""
    path = tmp_path / "fcos.yaml"
    bases = [f"{repository}/configs/{f}.yaml" for f in ("Base-FCOS", "backbones/R50")]
    path.write_text(f"_BASE_: {bases}\nMODEL:\n  DEVICE: cpu\n")
    aid_fcos = build_model(load_config(str(path)))
    make_confident(aid_fcos)
    d2_fcos = instantiate(model_zoo.get_config("COCO-Detection/fcos_R_50_FPN_1x.py").model)
    actual = d2_fcos.load_state_dict(aid_fcos.state_dict())
    assert not actual.missing_keys and not actual.unexpected_keys
    return aid_fcos, d2_fcos


def test_losses_and_detections_equal_detectron2_bit_for_bit(both, make_batch):
    batch = make_batch((2, 0, 3))
    aid_fcos, d2_fcos = both
    assert type(d2_fcos) is fcos.FCOS
    assert {k: getattr(aid_fcos, k) for k in SETTINGS} == {k: getattr(d2_fcos, k) for k in SETTINGS}
    # The second step depends on the normalizer that the first one updated.
    expected, actual = (losses_of(x, batch, times=2) for x in (d2_fcos, aid_fcos))
    assert set(actual) == LOSSES
    assert all(torch.equal(actual[k], v) and v > 0 for k, v in expected.items())
    assert aid_fcos.loss_normalizer == d2_fcos.loss_normalizer
    with torch.no_grad():
        detections = zip(d2_fcos.eval()(batch), aid_fcos.eval()(batch), strict=True)
    for expected, actual in detections:
        expected, actual = expected["instances"], actual["instances"]
        assert len(expected) > 0
        for name in ("scores", "pred_classes"):
            assert torch.equal(actual.get(name), expected.get(name))
        assert torch.equal(actual.pred_boxes.tensor, expected.pred_boxes.tensor)


def test_batch_without_instances_has_only_a_class_loss(tiny_model, make_batch):
    model = tiny_model("fcos")
    losses = losses_of(model, make_batch((0, 0)))
    assert losses["loss_fcos_loc"] == losses["loss_fcos_ctr"] == 0 < losses["loss_fcos_cls"]
    assert model.loss_normalizer == pytest.approx(0.9 * 300 + 0.1 * 1)
    sum(losses.values()).backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in model.parameters())


def test_losses_of_large_boxes_do_not_overflow_in_half_precision(tiny_model, make_batch):
    """A box of 640 x 640 pixels exceeds the largest half-precision number, 65504."""
    model, batch = tiny_model("fcos"), make_batch()
    nn.init.constant_(model.head.bbox_pred.bias, 40.0)  # in strides of 8 pixels, on each side
    expected = losses_of(model, batch)
    del model.loss_normalizer
    with torch.autocast("cpu", dtype=torch.float16):
        actual = losses_of(model, batch)
    for name, loss in expected.items():
        assert actual[name].dtype == torch.float32
        torch.testing.assert_close(actual[name], loss, rtol=0.02, atol=0)


@pytest.mark.parametrize("norm", ["", "BN", "GN"])
def test_head_norm_is_configurable(norm, tiny_model, make_batch):
    model = tiny_model("fcos", ["MODEL.FCOS.NORM", norm, "MODEL.FPN.OUT_CHANNELS", 32])
    assert any(isinstance(x, nn.GroupNorm) for x in model.head.modules()) == (norm == "GN")
    assert all(x.isfinite() for x in losses_of(model, make_batch()).values())


def test_box_bias_starts_at_the_prior_distance(tiny_model):
    for distance in (0.0, 2.0):
        model = tiny_model("fcos", ["MODEL.FCOS.PRIOR_DISTANCE", distance])
        assert (model.head.bbox_pred.bias == distance).all()


def test_nan_boxes_raise_a_floating_point_error(tiny_model, make_batch):
    model = tiny_model("fcos")
    nn.init.constant_(model.head.bbox_pred.bias, torch.nan)
    with pytest.raises(FloatingPointError, match="boxes contain NaN"):
        losses_of(model, make_batch())
