"""FPN backbones from torchvision's classification models."""

import pytest
import torch
import torchvision
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_backbone
from torch import nn

from aid.config import load_config
from aid.modeling.detectors import TorchvisionBackbone
from aid.utils.errors import AIDError

FEATURES = ["res2", "res3", "res4", "res5"]


def randomize(net: nn.Module) -> nn.Module:
    """Draw parameters and statistics, so that no batch norm is the identity."""
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return net


@pytest.mark.parametrize(
    "name, blocks, channels",
    [
        # Indices of the blocks before each reduction of the resolution, and of the last one.
        ("mobilenet_v3_large", [3, 6, 12, 16], [24, 40, 112, 960]),
        ("mobilenet_v2", [3, 6, 13, 18], [24, 32, 96, 1280]),
        ("efficientnet_b0", [2, 3, 5, 8], [24, 40, 112, 1280]),
        ("convnext_tiny", [1, 3, 5, 7], [96, 192, 384, 768]),
    ],
)
def test_features_equal_those_of_the_model(name, blocks, channels):
    net = randomize(torchvision.models.get_model(name, weights=None)).eval()
    backbone = TorchvisionBackbone(name, FEATURES).eval()
    missing, unexpected = backbone.body.load_state_dict(net.state_dict(), strict=False)
    assert not missing
    assert all(x.startswith("classifier") or x.endswith("batches_tracked") for x in unexpected)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        features = backbone(images)
        for name, block, width in zip(FEATURES, blocks, channels, strict=True):
            expected = net.features[: block + 1](images)
            torch.testing.assert_close(features[name], expected, rtol=1e-4, atol=1e-5)
            assert backbone.output_shape()[name].channels == width == expected.shape[1]
            assert backbone.output_shape()[name].stride == 64 / expected.shape[2]


@pytest.mark.parametrize(
    "name", ["regnet_y_400mf", "shufflenet_v2_x1_0", "densenet121", "mnasnet0_5"]
)
def test_strides_are_4_to_32(name):
    backbone = TorchvisionBackbone(name, FEATURES, norm="BN", freeze_at=0)
    features = backbone(torch.randn(2, 3, 64, 128))
    assert {k: tuple(x.shape[-2:]) for k, x in features.items()} == {
        "res2": (16, 32),
        "res3": (8, 16),
        "res4": (4, 8),
        "res5": (2, 4),
    }
    sum(x.mean() for x in features.values()).backward()
    assert all(p.grad is not None for p in backbone.parameters())


def test_googlenet_converts_images_as_its_weights_require():
    net = randomize(torchvision.models.googlenet(weights=None, init_weights=False)).eval()
    net.transform_input = True  # as with weights
    backbone = TorchvisionBackbone("googlenet", FEATURES[:1]).eval()
    backbone.body.load_state_dict(net.state_dict(), strict=False)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = net.conv3(net.conv2(net.maxpool1(net.conv1(net._transform_input(images)))))
        torch.testing.assert_close(backbone(images)["res2"], expected)


def test_unused_blocks_are_removed():
    whole = TorchvisionBackbone("mobilenet_v3_large", FEATURES)
    part = TorchvisionBackbone("mobilenet_v3_large", ["res2", "res3"])
    assert len(part.state_dict()) < len(whole.state_dict())
    assert list(part(torch.randn(1, 3, 64, 64))) == ["res2", "res3"]


def test_nothing_is_frozen_at_stage_0():
    backbone = TorchvisionBackbone(
        "vgg11_bn", FEATURES, norm="BN", freeze_at=0
    )  # begins at stride 1
    assert all(p.requires_grad for p in backbone.parameters())
    assert not any(isinstance(m, FrozenBatchNorm2d) for m in backbone.modules())


def test_frozen_stages():
    backbone = TorchvisionBackbone("mobilenet_v3_large", FEATURES, norm="BN", freeze_at=2)
    trained = {x.split(".")[2] for x, p in backbone.named_parameters() if p.requires_grad}
    assert trained == {str(i) for i in range(4, 17)}  # features.0 to 3 have strides of 2 and 4
    norms = {x.split(".")[2] for x, m in backbone.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert norms == trained
    frozen = TorchvisionBackbone("mobilenet_v3_large", FEATURES)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in frozen.modules())
    assert any(isinstance(m, FrozenBatchNorm2d) for m in frozen.modules())


@pytest.mark.parametrize(
    "file, levels",
    [
        ("Base-RCNN-FPN", ["p2", "p3", "p4", "p5", "p6"]),
        ("Base-RetinaNet", ["p3", "p4", "p5", "p6", "p7"]),
        ("Base-FCOS", ["p3", "p4", "p5", "p6", "p7"]),
        ("Base-GFL", ["p3", "p4", "p5", "p6", "p7"]),
    ],
)
def test_fpn_levels_of_each_family(file, levels, repository):
    opts = ["MODEL.BACKBONE.NAME", "build_torchvision_fpn_backbone", "MODEL.FPN.OUT_CHANNELS", 32]
    backbone = build_backbone(load_config(f"{repository}/configs/{file}.yaml", opts)).eval()
    assert backbone.size_divisibility == 32
    with torch.no_grad():
        features = backbone(torch.zeros(1, 3, 64, 96))
    assert list(features) == levels
    for level, shape in backbone.output_shape().items():
        assert shape.stride == 2 ** int(level[1]) and shape.channels == 32
        assert features[level].shape[2] == -(-64 // shape.stride)


@pytest.mark.parametrize(
    "name, features, norm, message",
    [
        (
            "mobilenet_v9",
            FEATURES,
            "BN",
            "unknown .did you mean mobilenet_v2.., choose one of a",
        ),
        ("resnet18", FEATURES, "BN", "Detectron2 has ResNets of its own; .*torchvision://resnet18"),
        ("vit_b_16", FEATURES, "BN", "vit_b_16 has no features of stride 4, 8, 16, 32"),
        ("swin_t", FEATURES, "BN", "swin_t has no features of stride"),
        ("mobilenet_v3_large", ["p3"], "BN", "MODEL.FPN.IN_FEATURES: p3: "),
        ("mobilenet_v3_large", FEATURES, "GN", "MODEL.TORCHVISION.NORM: 'GN' is unknown"),
    ],
)
def test_invalid_values_are_refused(name, features, norm, message):
    with pytest.raises(AIDError, match=message):
        TorchvisionBackbone(name, features, norm)


def test_images_of_one_channel_are_refused(repository):
    opts = ["MODEL.BACKBONE.NAME", "build_torchvision_fpn_backbone"]
    cfg = load_config(f"{repository}/configs/Base-RCNN-FPN.yaml", opts)
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [0.0], [1.0]
    with pytest.raises(AIDError, match="need images of 3 channels, MODEL.PIXEL_MEAN has 1"):
        build_backbone(cfg)
