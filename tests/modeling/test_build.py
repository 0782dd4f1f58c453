"""Warning about random weights with frozen batch norm."""

import pytest
from detectron2.modeling import build_model

from aid.config import load_config
from aid.modeling.build import warn_of_frozen_norms


@pytest.mark.parametrize(
    "name, key",
    [
        ("build_resnet_fpn_backbone", "MODEL.RESNETS.NORM"),
        ("build_torchvision_fpn_backbone", "MODEL.TORCHVISION.NORM"),
    ],
)
def test_frozen_norms_of_random_weights_are_warned_about(name, key, tiny_config, caplog):
    opts = ["MODEL.BACKBONE.NAME", name]
    for weights, norm in (("x.pth", "FrozenBN"), ("", "BN"), ("", "FrozenBN")):
        assert "diverge" not in caplog.text
        cfg = load_config(tiny_config("faster_rcnn", [*opts, key, norm, "MODEL.WEIGHTS", weights]))
        warn_of_frozen_norms(cfg, build_model(cfg))
    assert f"set MODEL.WEIGHTS, or {key} BN" in caplog.text
