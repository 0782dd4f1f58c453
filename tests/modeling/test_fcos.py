"""FCOS from YAML against Detectron2's own, built by its LazyConfig."""

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
    """Detections, and boxes of some size, from a head that would not have any at first."""
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
    """FCOS with ResNet-50 from YAML, and Detectron2's with the same weights."""
    path = tmp_path / "fcos.yaml"
    bases = [f"{repository}/configs/{f}.yaml" for f in ("Base-FCOS", "backbones/R50")]
    path.write_text(f"_BASE_: {bases}\nMODEL:\n  DEVICE: cpu\n")
    ours = build_model(load_config(str(path)))
    make_confident(ours)
    theirs = instantiate(model_zoo.get_config("COCO-Detection/fcos_R_50_FPN_1x.py").model)
    found = theirs.load_state_dict(ours.state_dict())
    assert not found.missing_keys and not found.unexpected_keys
    return ours, theirs


def test_it_is_detectron2s_own_bit_for_bit(both, make_batch):
    batch = make_batch((2, 0, 3))
    ours, theirs = both
    assert type(theirs) is fcos.FCOS
    assert {k: getattr(ours, k) for k in SETTINGS} == {k: getattr(theirs, k) for k in SETTINGS}
    # The second step sees what the first left behind: the normaliser.
    expected, found = (losses_of(x, batch, times=2) for x in (theirs, ours))
    assert set(found) == LOSSES
    assert all(torch.equal(found[k], v) and v > 0 for k, v in expected.items())
    assert ours.loss_normalizer == theirs.loss_normalizer
    with torch.no_grad():
        detections = zip(theirs.eval()(batch), ours.eval()(batch), strict=True)
    for expected, found in detections:
        expected, found = expected["instances"], found["instances"]
        assert len(expected) > 0
        for name in ("scores", "pred_classes"):
            assert torch.equal(found.get(name), expected.get(name))
        assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)


def test_a_batch_without_instances(tiny_model, make_batch):
    model = tiny_model("fcos")
    losses = losses_of(model, make_batch((0, 0)))
    assert losses["loss_fcos_loc"] == losses["loss_fcos_ctr"] == 0 < losses["loss_fcos_cls"]
    assert model.loss_normalizer == pytest.approx(0.9 * 300 + 0.1 * 1)
    sum(losses.values()).backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in model.parameters())


def test_large_boxes_in_half_precision(tiny_model, make_batch):
    """Half precision ends at 65504: a box of 640 x 640 pixels has a larger area."""
    model, batch = tiny_model("fcos"), make_batch()
    nn.init.constant_(model.head.bbox_pred.bias, 40.0)  # strides of 8 pixels, to every side
    expected = losses_of(model, batch)
    del model.loss_normalizer
    with torch.autocast("cpu", dtype=torch.float16):
        found = losses_of(model, batch)
    for name, loss in expected.items():
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], loss, rtol=0.02, atol=0)


@pytest.mark.parametrize("norm", ["", "BN", "GN"])
def test_the_heads_norm(norm, tiny_model, make_batch):
    model = tiny_model("fcos", ["MODEL.FCOS.NORM", norm, "MODEL.FPN.OUT_CHANNELS", 32])
    assert any(isinstance(x, nn.GroupNorm) for x in model.head.modules()) == (norm == "GN")
    assert all(x.isfinite() for x in losses_of(model, make_batch()).values())


def test_boxes_start_at_the_prior_distance(tiny_model):
    for distance in (0.0, 2.0):
        model = tiny_model("fcos", ["MODEL.FCOS.PRIOR_DISTANCE", distance])
        assert (model.head.bbox_pred.bias == distance).all()


def test_boxes_of_nan_are_no_failed_assertion(tiny_model, make_batch):
    model = tiny_model("fcos")
    nn.init.constant_(model.head.bbox_pred.bias, torch.nan)
    with pytest.raises(FloatingPointError, match="boxes contain NaN"):
        losses_of(model, make_batch())
