"""torchvision's weights under Detectron2's names."""

import os
import re
import urllib.error

import pytest
import torch
import torchvision
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_backbone
from detectron2.utils.file_io import PathManager
from torch import nn

from aid.checkpoint import check_torchvision_weights
from aid.config import load_config
from aid.engine import AIDTrainer
from aid.utils.errors import AIDError

TORCHVISION = "build_torchvision_fpn_backbone"


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """Empty caches, and a fake hub that counts downloads."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    served = {"downloads": 0}

    def download(url, *args, **kwargs):
        served["downloads"] += 1
        if "state_dict" not in served:
            raise urllib.error.URLError("no route to host")
        return served["state_dict"]

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    return served


def random_resnet(name: str) -> nn.Module:
    torch.manual_seed(0)
    net = getattr(torchvision.models, name)(weights=None).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):  # no norm is the identity, as after training
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return net


@pytest.mark.parametrize("depth, channels", [(18, 64), (50, 256)])
def test_features_equal_torchvision(depth, channels, cache, repository):
    net = random_resnet(f"resnet{depth}")
    cache["state_dict"] = net.state_dict()
    cfg = load_config(
        f"{repository}/configs/KITTI/faster_rcnn_R18_FPN.yaml",
        ["MODEL.RESNETS.DEPTH", depth, "MODEL.RESNETS.RES2_OUT_CHANNELS", channels],
    )
    backbone = build_backbone(cfg).eval()
    DetectionCheckpointer(nn.ModuleDict({"backbone": backbone})).load(
        f"torchvision://resnet{depth}"
    )

    net, backbone = net.double(), backbone.double()  # rounding would hide a small difference
    image = torch.randn(1, 3, 64, 96).double()
    actual = backbone.bottom_up(image)
    with torch.no_grad():
        x = net.maxpool(net.relu(net.bn1(net.conv1(image))))
        for level in range(1, 5):
            x = getattr(net, f"layer{level}")(x)
            torch.testing.assert_close(actual[f"res{level + 1}"], x)


def test_weights_are_downloaded_once(cache):
    cache["state_dict"] = random_resnet("resnet18").state_dict()
    path = PathManager.get_local_path("torchvision://resnet18")
    assert PathManager.get_local_path("torchvision://resnet18") == path
    assert cache["downloads"] == 1
    keys = torch.load(path)["model"]
    assert "stem.conv1.norm.running_mean" in keys and "res3.0.shortcut.norm.weight" in keys
    assert not any("bn" in key or "layer" in key or "fc" in key for key in keys)


def test_full_disk_is_reported(cache, tmp_path, file_limit):
    cache["state_dict"] = random_resnet("resnet18").state_dict()
    message = f"torchvision://resnet18 cannot be written to {tmp_path}/torchvision: make room there"
    with file_limit(1000), pytest.raises(AIDError, match=message):
        PathManager.get_local_path("torchvision://resnet18")
    assert os.listdir(tmp_path / "torchvision") == []


def test_failed_download_is_reported(cache, tmp_path):
    with pytest.raises(AIDError, match="torchvision://resnet34 cannot be downloaded.*no route"):
        PathManager.get_local_path("torchvision://resnet34")
    assert not list(tmp_path.rglob("*.pth*"))


def test_other_models_keep_their_parameter_names(cache, repository):
    net = torchvision.models.mobilenet_v3_small(weights=None)
    cache["state_dict"] = net.state_dict()
    opts = ["MODEL.BACKBONE.NAME", "build_torchvision_fpn_backbone"]
    opts += ["MODEL.TORCHVISION.NAME", "mobilenet_v3_small"]
    backbone = build_backbone(load_config(f"{repository}/configs/Base-RCNN-FPN.yaml", opts))
    DetectionCheckpointer(nn.ModuleDict({"backbone": backbone})).load(
        "torchvision://mobilenet_v3_small"
    )
    loaded = backbone.bottom_up.body.state_dict()
    for name in loaded.keys() & net.state_dict().keys():
        torch.testing.assert_close(loaded[name], net.state_dict()[name])
    assert "features.12.0.weight" in loaded


def test_old_names_of_densenet_are_converted(cache):
    names = ["features.denseblock1.denselayer2.norm1.weight", "features.norm5.bias"]
    old = [names[0].replace("norm1", "norm.1"), names[1]]
    cache["state_dict"] = {name: torch.zeros(1) for name in old}
    assert (
        list(torch.load(PathManager.get_local_path("torchvision://densenet121"))["model"]) == names
    )


@pytest.mark.parametrize(
    "opts, message",
    [
        ([], None),
        (["MODEL.WEIGHTS", ""], None),
        (["MODEL.WEIGHTS", "my.pth", "INPUT.FORMAT", "BGR"], None),
        (["INPUT.FORMAT", "BGR"], "than this config has: set INPUT.FORMAT RGB$"),
        (
            ["MODEL.PIXEL_STD", [1.0] * 3],
            r"set MODEL.PIXEL_STD \[58.395, 57.12, 57.375\]$",
        ),
        (["MODEL.PIXEL_MEAN", [1.0], "MODEL.PIXEL_STD", [1.0]], "set MODEL.PIXEL_MEAN .*_STD"),
        (
            ["MODEL.WEIGHTS", "torchvision://efficientnet_v2_l"]
            + ["MODEL.BACKBONE.NAME", TORCHVISION, "MODEL.TORCHVISION.NAME", "efficientnet_v2_l"],
            r"set MODEL.PIXEL_MEAN \[127.5, 127.5, 127.5\], MODEL.PIXEL_STD \[127.5, 1",
        ),
        (
            ["MODEL.WEIGHTS", "torchvision://resnet50", "MODEL.RESNETS.DEPTH", 50]
            + ["MODEL.RESNETS.STRIDE_IN_1X1", True],
            "set MODEL.RESNETS.STRIDE_IN_1X1 False$",
        ),
    ],
)
def test_other_preprocessing_than_that_of_the_weights_is_warned_about(
    opts, message, repository, caplog
):
    check_torchvision_weights(
        load_config(f"{repository}/configs/KITTI/faster_rcnn_R18_FPN.yaml", opts)
    )
    (warned,) = caplog.messages[-1:] if message else ("",)
    assert re.search(message or "^$", warned)
    assert message or not any("were trained" in x for x in caplog.messages)


@pytest.mark.parametrize(
    "opts, message",
    [
        (["MODEL.RESNETS.DEPTH", 34], "is resnet34 by .*: set MODEL.WEIGHTS to .*resnet34$"),
        (
            ["MODEL.BACKBONE.NAME", TORCHVISION],
            "is mobilenet_v3_large by .*: set MODEL.WEIGHTS to torchvision://mobilenet_v3_large$",
        ),
    ],
)
def test_weights_of_another_network_are_refused(opts, message, repository):
    path = f"{repository}/configs/KITTI/faster_rcnn_R18_FPN.yaml"
    with pytest.raises(AIDError, match=f"MODEL.WEIGHTS torchvision://resnet18 .*{message}"):
        AIDTrainer.build_model(load_config(path, opts))


def test_unknown_name_is_refused(cache):
    with pytest.raises(
        AIDError, match="torchvision://resnet9: .*write one of .*resnet18, resnet34"
    ):
        PathManager.get_local_path("torchvision://resnet9")
