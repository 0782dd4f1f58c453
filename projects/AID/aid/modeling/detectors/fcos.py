"""FCOS (Tian et al., arXiv 1904.01355) for YAML configs; Detectron2 has it for LazyConfig only."""

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.backbone import build_resnet_backbone
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.modeling.meta_arch import fcos
from detectron2.structures import Boxes
from torch import Tensor, nn

from ...utils.errors import check_one_or_more

__all__ = ["FCOS", "build_fcos_resnet_fpn_backbone"]

# Logit of a class for which background has a focal loss of exactly 0.
SURE_BACKGROUND = -1e4


@BACKBONE_REGISTRY.register()
def build_fcos_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build a ResNet with an FPN of levels P3 to P7, with P6 computed from P5.

    RetinaNet's builder computes P6 from C5.
    """
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    return FPN(
        bottom_up=build_resnet_backbone(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=channels,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelP6P7(channels, channels, in_feature="p5"),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


@META_ARCH_REGISTRY.register()
class FCOS(fcos.FCOS):
    """Detectron2's FCOS with the same parameters, configured by ``MODEL.FCOS``.

    It differs in three cases in which Detectron2's fails. Predictions are converted to float32,
    since the area of a box of 256 x 256 pixels is infinite in half precision. Boxes that are NaN
    raise FloatingPointError, as in Detectron2's RPN, instead of AssertionError. Points may have the
    label -1, as in RetinaNet, and no loss then.
    """

    @configurable
    def __init__(self, *, input_format: str = "BGR", vis_period: int = 0, **kwargs: Any) -> None:
        """
        Args:
            input_format: channel order of the images, "BGR" or "RGB".
            vis_period: iterations between pictures of a training batch; 0 for none.
            kwargs: see Detectron2's FCOS.
        """
        super().__init__(**kwargs)
        self.input_format = input_format
        self.vis_period = vis_period

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        keys = cfg.MODEL.FCOS
        check_one_or_more("MODEL.FCOS.NUM_CONVS", keys.NUM_CONVS)
        backbone = build_backbone(cfg)
        shapes = [backbone.output_shape()[level] for level in keys.IN_FEATURES]
        head = fcos.FCOSHead(
            input_shape=shapes,
            num_classes=keys.NUM_CLASSES,
            conv_dims=[shapes[0].channels] * keys.NUM_CONVS,
            norm=keys.NORM,
            prior_prob=keys.PRIOR_PROB,
        )
        nn.init.constant_(head.bbox_pred.bias, keys.PRIOR_DISTANCE)
        return {
            "backbone": backbone,
            "head": head,
            "head_in_features": keys.IN_FEATURES,
            "num_classes": keys.NUM_CLASSES,
            "center_sampling_radius": keys.CENTER_SAMPLING_RADIUS,
            "focal_loss_alpha": keys.FOCAL_LOSS_ALPHA,
            "focal_loss_gamma": keys.FOCAL_LOSS_GAMMA,
            "test_score_thresh": keys.SCORE_THRESH_TEST,
            "test_topk_candidates": keys.TOPK_CANDIDATES_TEST,
            "test_nms_thresh": keys.NMS_THRESH_TEST,
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "input_format": cfg.INPUT.FORMAT,
            "vis_period": cfg.VIS_PERIOD,
        }

    def losses(
        self, anchors: list[Boxes], logits: list[Tensor], labels: list[Tensor], *args: Any
    ) -> dict[str, Tensor]:
        """Losses of Detectron2's FCOS.

        Args:
            anchors, args: see Detectron2's FCOS.
            logits: of the classes, (N, R_l, K) of each level.
            labels: class of each point (R,) in each image; K for background, -1 for neither.

        Raises:
            FloatingPointError: predicted boxes are NaN.
        """
        ignored = torch.stack(labels) < 0
        if ignored.any():
            of_level = ignored[..., None].split([len(x) for x in anchors], dim=1)
            pairs = zip(logits, of_level, strict=True)
            logits = [x.masked_fill(at, SURE_BACKGROUND) for x, at in pairs]
            labels = [x.masked_fill(x < 0, self.num_classes) for x in labels]
        try:
            return super().losses(anchors, logits, labels, *args)
        except AssertionError as error:  # of the IoU loss
            if "bad box" not in str(error):
                raise
            raise FloatingPointError(
                "Predicted boxes contain NaN. Training has diverged."
            ) from error

    def _transpose_dense_predictions(self, *args: Any) -> list[list[Tensor]]:
        return [
            [x.float() for x in levels] for levels in super()._transpose_dense_predictions(*args)
        ]
