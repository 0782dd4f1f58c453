"""What GFL predicts in every cell.

Shape letters:

    N: images    L: levels    K: classes    B: bins of a distribution    H, W: of a level
"""

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from torch import Tensor, nn

from ...errors import AIDError

__all__ = ["GFLHead"]


class GFLHead(RetinaNetHead):
    """RetinaNet's head with one anchor per cell, and distributions for its boxes."""

    @configurable
    def __init__(self, *, input_shape: list[ShapeSpec], conv_dims: list[int], reg_max: int, **args):
        """
        Args:
            input_shape: of each level.
            conv_dims: channels of the convolutions of each of the two branches.
            reg_max: the largest distance, in cells: B is one more.
            args: see :class:`RetinaNetHead`.
        """
        super().__init__(input_shape=input_shape, conv_dims=conv_dims, num_anchors=1, **args)
        self.bbox_pred = nn.Conv2d(conv_dims[-1], 4 * (reg_max + 1), kernel_size=3, padding=1)
        nn.init.normal_(self.bbox_pred.weight, std=0.01)
        nn.init.zeros_(self.bbox_pred.bias)
        # The levels share all weights but this one, on the logits of the distributions.
        self.scales = nn.Parameter(torch.ones(len(input_shape)))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict:
        channels, keys = input_shape[0].channels, cfg.MODEL.GFL
        if keys.NORM == "GN" and channels % 32:
            raise AIDError(
                f"MODEL.GFL.NORM GN makes 32 groups of channels, MODEL.FPN.OUT_CHANNELS is "
                f"{channels}: choose a multiple of 32, or another NORM"
            )
        return {
            "input_shape": input_shape,
            "num_classes": keys.NUM_CLASSES,
            "conv_dims": [channels] * keys.NUM_CONVS,
            "norm": keys.NORM,
            "prior_prob": keys.PRIOR_PROB,
            "reg_max": keys.REG_MAX,
        }

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Logits (N, K, H, W) and distributions' logits (N, 4 * B, H, W) of each of L levels."""
        logits, distributions = [], []
        for feature, scale in zip(features, self.scales, strict=True):
            logits.append(self.cls_score(self.cls_subnet(feature)))
            distributions.append(scale * self.bbox_pred(self.bbox_subnet(feature)))
        return logits, distributions
