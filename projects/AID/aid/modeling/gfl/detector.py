"""The detector: Generalized Focal Loss (Li et al., NeurIPS 2020, arXiv 2006.04388).

Shape letters:

    N: images    R: cells of one image, all levels    S: cells    K: classes
    B: bins of a distribution
"""

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import batched_nms
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from ..overlaps import overlaps
from .assignment import assign_cells
from .head import GFLHead
from .integral import IntegralTransform
from .losses import distribution_focal_losses, quality_focal_losses

__all__ = ["GFL"]


@META_ARCH_REGISTRY.register()
class GFL(DenseDetector):
    """A score is the expected IoU of its box; a box is four distributions of distances."""

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        head: nn.Module,
        head_in_features: list[str],
        num_classes: int,
        reg_max: int,
        anchor_scale: float,
        anchor_offset: float,
        topk: int,
        quality_beta: float,
        giou_weight: float,
        distribution_weight: float,
        test_score_thresh: float,
        test_topk_candidates: int,
        test_nms_thresh: float,
        max_detections_per_image: int,
        pixel_mean: tuple[float, ...],
        pixel_std: tuple[float, ...],
        vis_period: int = 0,
        input_format: str = "BGR",
    ):
        """
        Args:
            backbone, head_in_features, pixel_mean, pixel_std: see :class:`DenseDetector`.
            head: from features to logits and distributions, as :class:`GFLHead`.
            num_classes: K.
            reg_max, anchor_scale: see :class:`IntegralTransform`.
            anchor_offset: of the anchors' centers in their cells, in cells.
            topk: see :func:`assign_cells`.
            quality_beta: see :func:`quality_focal_losses`.
            giou_weight, distribution_weight: of the two losses of a box.
            test_score_thresh, test_topk_candidates, test_nms_thresh: see :class:`RetinaNet`.
            max_detections_per_image, vis_period, input_format: likewise.
        """
        super().__init__(
            backbone, head, head_in_features, pixel_mean=pixel_mean, pixel_std=pixel_std
        )
        shapes = backbone.output_shape()
        strides = [shapes[level].stride for level in head_in_features]
        self.anchor_generator = DefaultAnchorGenerator(
            sizes=[[anchor_scale * stride] for stride in strides],
            aspect_ratios=[1.0],
            strides=strides,
            offset=anchor_offset,
        )
        self.box2box_transform = IntegralTransform(reg_max, anchor_scale)
        self.num_classes = num_classes
        self.dims = [num_classes, 4 * (reg_max + 1)]  # of the predictions in a cell
        self.topk = topk
        self.quality_beta = quality_beta
        self.giou_weight = giou_weight
        self.distribution_weight = distribution_weight
        self.test_score_thresh = test_score_thresh
        self.test_topk_candidates = test_topk_candidates
        self.test_nms_thresh = test_nms_thresh
        self.max_detections_per_image = max_detections_per_image
        self.vis_period = vis_period
        self.input_format = input_format

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        backbone, keys = build_backbone(cfg), cfg.MODEL.GFL
        shapes = backbone.output_shape()
        return {
            "backbone": backbone,
            "head": GFLHead(cfg, [shapes[level] for level in keys.IN_FEATURES]),
            "head_in_features": keys.IN_FEATURES,
            "num_classes": keys.NUM_CLASSES,
            "reg_max": keys.REG_MAX,
            "anchor_scale": keys.ANCHOR_SCALE,
            "anchor_offset": cfg.MODEL.ANCHOR_GENERATOR.OFFSET,
            "topk": keys.TOPK,
            "quality_beta": keys.QUALITY_BETA,
            "giou_weight": keys.GIOU_WEIGHT,
            "distribution_weight": keys.DISTRIBUTION_WEIGHT,
            "test_score_thresh": keys.SCORE_THRESH_TEST,
            "test_topk_candidates": keys.TOPK_CANDIDATES_TEST,
            "test_nms_thresh": keys.NMS_THRESH_TEST,
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "vis_period": cfg.VIS_PERIOD,
            "input_format": cfg.INPUT.FORMAT,
        }

    def forward_training(
        self,
        images: ImageList,
        features: list[Tensor],
        predictions: tuple[list[Tensor], list[Tensor]],
        gt_instances: list[Instances],
    ) -> dict[str, Tensor]:
        """The losses of a batch; called by :meth:`DenseDetector.forward`."""
        anchors = self.anchor_generator(features)
        labels, targets = self.label_cells(anchors, gt_instances)
        return self.losses(anchors, *self.transpose(predictions), labels, targets)

    def transpose(self, predictions: tuple[list[Tensor], list[Tensor]]) -> tuple[Tensor, Tensor]:
        """The head's output, all levels in one: logits (N, R, K), distributions (N, R, 4 * B).

        In single precision: half of it is not enough for the losses.
        """
        levels = self._transpose_dense_predictions(predictions, self.dims)
        logits, distributions = (torch.cat(x, dim=1).float() for x in levels)
        return logits, distributions

    @torch.no_grad()
    def label_cells(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[Tensor, Tensor]:
        """What each cell should say: a class (N, R), K for none, and a box (N, R, 4)."""
        labels, targets = [], []
        for truth in gt_instances:
            owner, _ = assign_cells(truth.gt_boxes, anchors, self.topk)
            # A last row for nobody.
            classes, boxes = truth.gt_classes, truth.gt_boxes.tensor
            labels.append(torch.cat([classes, classes.new_full((1,), self.num_classes)])[owner])
            targets.append(torch.cat([boxes, boxes.new_zeros(1, 4)])[owner])
        return torch.stack(labels), torch.stack(targets)

    def losses(
        self,
        anchors: list[Boxes],
        logits: Tensor,
        distributions: Tensor,
        labels: Tensor,
        targets: Tensor,
    ) -> dict[str, Tensor]:
        """Sums of the losses over the cells, normalised as the authors do.

        Quality focal losses by the number of cells with an instance. Of those, a box counts by the
        score that its cell gives, and the sum of these scores is its normaliser. Both normalisers
        are means over all processes, and at least 1.

        Args:
            anchors: of each level.
            logits, distributions: of :meth:`transpose`.
            labels, targets: of :meth:`label_cells`.
        """
        positive = (labels != self.num_classes).flatten().nonzero().squeeze(1)
        get_event_storage().put_scalar("num_pos_anchors", len(positive) / len(labels))
        boxes = Boxes.cat(anchors).tensor[positive % labels.shape[1]]
        logits, distributions, labels, targets = (
            x.flatten(0, 1) for x in (logits, distributions, labels, targets)
        )
        iou, giou, distribution = self.box_losses(distributions[positive], boxes, targets[positive])

        quality = torch.zeros_like(logits[:, 0])
        quality[positive] = iou
        # Where there is no instance the quality is 0, and the class does not matter.
        classes = labels.clamp(max=self.num_classes - 1)
        cls = quality_focal_losses(logits, classes, quality, self.quality_beta)
        score = logits.detach()[positive].sigmoid().amax(dim=1)

        totals = torch.stack([score.new_tensor(len(positive)), score.sum()])
        num_positives, total_score = _mean_over_processes(totals).clamp(min=1)
        return {
            "loss_cls": cls.sum() / num_positives,
            "loss_box_reg": (score * giou).sum() / total_score,
            "loss_dfl": (score * distribution).sum() / total_score,
        }

    def box_losses(
        self, distributions: Tensor, anchors: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What there is to learn of a box.

        Args:
            distributions: (S, 4 * B).
            anchors, targets: (S, 4).

        Returns:
            (S,) each: the IoU of the predicted box, which is what its score should be, without
            gradient; its generalized IoU loss, and its distribution focal loss, with their weights.
        """
        boxes = self.box2box_transform.apply_deltas(distributions, anchors)
        iou, giou = overlaps(boxes, targets)
        distances = self.box2box_transform.get_deltas(anchors, targets)
        distribution = distribution_focal_losses(distributions, distances)
        return (
            iou.detach(),
            self.giou_weight * (1 - giou),
            self.distribution_weight * distribution,
        )

    def forward_inference(
        self,
        images: ImageList,
        features: list[Tensor],
        predictions: tuple[list[Tensor], list[Tensor]],
    ) -> list[Instances]:
        """Detections of each image, in pixels of the input; the best of each class and place."""
        anchors = self.anchor_generator(features)
        logits, distributions = self._transpose_dense_predictions(predictions, self.dims)
        results = []
        for image, size in enumerate(images.image_sizes):
            found = self._decode_multi_level_predictions(
                anchors,
                [x[image].sigmoid() for x in logits],
                [x[image] for x in distributions],
                self.test_score_thresh,
                self.test_topk_candidates,
                size,
            )
            keep = batched_nms(
                found.pred_boxes.tensor, found.scores, found.pred_classes, self.test_nms_thresh
            )
            results.append(found[keep[: self.max_detections_per_image]])
        return results


def _mean_over_processes(totals: Tensor) -> Tensor:
    if comm.get_world_size() > 1:
        torch.distributed.all_reduce(totals)
    return totals / comm.get_world_size()
