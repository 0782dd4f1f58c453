#!/usr/bin/env python3
"""Latency and GFLOPs of light detectors with narrower, or depthwise separable, FPN and head.

    python studies/light_heads.py

Backbone, FPN and convolutional head run in ONNX Runtime with one thread. Weights and image are
random.
"""

import io
import warnings
from functools import partial

import onnxruntime
import torch
from detectron2.layers import Conv2d
from detectron2.modeling import build_model
from detectron2.utils.analysis import FlopCountAnalysis
from torch import Tensor, nn

from aid.config import load_config
from aid_tools.cost import latencies

CONFIGS = {
    "GFL": "configs/KITTI/gfl_MobileNetV3L_FPN.yaml",
    "Faster R-CNN, RPN": "configs/KITTI/faster_rcnn_MobileNetV3L_FPN.yaml",
}
# (channels of FPN and head, whether their 3x3 convolutions are depthwise separable)
FORMS = [(128, False), (64, False), (128, True), (64, True)]
# Height and width of the image.
SIZE = (384, 1248)
REPEAT = 20


class ConvolutionalPart(nn.Module):
    """Backbone, FPN and convolutional head of a detector."""

    def __init__(self, config: str, channels: int, separable: bool):
        super().__init__()
        keys = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.FPN.OUT_CHANNELS", channels]
        detector = build_model(load_config(config, keys)).eval()
        self.backbone = detector.backbone
        if hasattr(detector, "proposal_generator"):
            self.levels = detector.proposal_generator.in_features
            self.head = detector.proposal_generator.rpn_head
        else:
            self.levels, self.head = detector.head_in_features, detector.head
        if separable:
            self.outputs = nn.ModuleList(map(depthwise_separable, self.backbone.output_convs))
            self.backbone.output_convs = list(self.outputs)
            make_separable(self.backbone.top_block)
            make_separable(self.head)

    def forward(self, image: Tensor) -> list[Tensor]:
        features = self.backbone(image)
        outputs = self.head([features[level] for level in self.levels])
        return [level for output in outputs for level in output]


def depthwise_separable(convolution: nn.Conv2d) -> nn.Sequential:
    """A depthwise convolution, then one of 1x1 with the norm and activation of the given one."""
    channels = convolution.in_channels
    depthwise = Conv2d(channels, channels, 3, convolution.stride, padding=1, groups=channels)
    optional = {x: getattr(convolution, x, None) for x in ("norm", "activation")}
    return nn.Sequential(depthwise, Conv2d(channels, convolution.out_channels, 1, **optional))


def make_separable(module: nn.Module) -> None:
    """Replace all 3x3 convolutions of a module."""
    for name, child in module.named_children():
        if isinstance(child, nn.Conv2d) and child.kernel_size == (3, 3):
            setattr(module, name, depthwise_separable(child))
        else:
            make_separable(child)


def session(module: nn.Module, image: Tensor) -> onnxruntime.InferenceSession:
    """Export a module to ONNX, and load it."""
    content = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):
        torch.onnx.export(module, (image,), content, dynamo=False, input_names=["image"])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(content.getvalue(), options)


def gflops(module: nn.Module, image: Tensor) -> float:
    """Multiply-adds, in units of 1e9, as counted by fvcore."""
    flops = FlopCountAnalysis(module, image)
    flops.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return flops.total() / 1e9


@torch.no_grad()
def main() -> None:
    image = torch.randn(1, 3, *SIZE)
    for name, config in CONFIGS.items():
        parts = [ConvolutionalPart(config, *form) for form in FORMS]
        inputs = {"image": image.numpy()}
        runs = [partial(session(part, image).run, None, inputs) for part in parts]
        for form, part, ms in zip(FORMS, parts, latencies(runs, REPEAT), strict=True):
            print("{}, channels {}, separable {}:".format(name, *form), end=" ")
            print(f"{ms:.0f} ms, {gflops(part, image):.1f} GFLOPs")


if __name__ == "__main__":
    main()
