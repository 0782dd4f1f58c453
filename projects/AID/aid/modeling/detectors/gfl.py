"""GFL, Generalized Focal Loss (Li et al., NeurIPS 2020, arXiv 2006.04388).

Shape letters:

    N: images    L: levels    R: cells of one image, all levels    (H, W): size of a level
    S: cells     K: classes   B: bins of a distribution, one per whole distance 0 ... reg_max, in
                                 cells (strides of the level)
    G: ground-truth instances of one image    C: candidates of an instance, all levels
"""

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, batched_nms
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.box_regression import Box2BoxTransformLinear
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from ...utils.errors import check_not_negative, check_one_or_more, check_positive
from ..boxes import anchor_iou, elementwise_box_giou
from .gfl_losses import distribution_focal_losses, quality_focal_losses

__all__ = ["GFL", "GFLHead", "IntegralTransform", "assign_cells"]


@META_ARCH_REGISTRY.register()
class GFL(DenseDetector):
    """Detector whose scores estimate the IoU of boxes, and whose box edges are distributions.

    Each cell has one anchor, K scores, and a distribution of the distance to each side of its box.
    """

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
            head: predicts class logits and distributions from features, see :class:`GFLHead`.
            num_classes: K.
            reg_max, anchor_scale: see :class:`IntegralTransform`.
            anchor_offset: offset of the anchors' centers in their cells, in cells.
            topk: see :func:`assign_cells`.
            quality_beta: see :func:`quality_focal_losses`.
            giou_weight, distribution_weight: weights of the two losses of boxes.
            test_score_thresh, test_topk_candidates, test_nms_thresh: see :class:`RetinaNet`.
            max_detections_per_image, vis_period, input_format: see :class:`RetinaNet`.
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
        keys = cfg.MODEL.GFL
        for name in ("REG_MAX", "TOPK", "NUM_CONVS"):
            check_one_or_more(f"MODEL.GFL.{name}", keys[name])
        check_positive("MODEL.GFL.ANCHOR_SCALE", keys.ANCHOR_SCALE)
        for name in ("QUALITY_BETA", "GIOU_WEIGHT", "DISTRIBUTION_WEIGHT"):
            check_not_negative(f"MODEL.GFL.{name}", keys[name])
        backbone = build_backbone(cfg)
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
        """Losses of a batch; called by :meth:`DenseDetector.forward`."""
        anchors = self.anchor_generator(features)
        labels, targets = self.label_anchors(anchors, gt_instances)
        levels = self._transpose_dense_predictions(predictions, self.dims)
        # Half precision is not sufficient for the losses.
        logits, distributions = (torch.cat(x, dim=1).float() for x in levels)
        return self.losses(anchors, logits, distributions, labels, targets)

    @property
    def dims(self) -> list[int]:
        """Channels of the predictions, K and 4 * B."""
        return [self.num_classes, 4 * (self.box2box_transform.reg_max + 1)]

    @torch.no_grad()
    def label_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[Tensor, Tensor]:
        """Targets of each cell: class (N, R), K for background, and box (N, R, 4)."""
        labels, targets = [], []
        for truth in gt_instances:
            matched_gt, _ = assign_cells(truth.gt_boxes, anchors, self.topk)
            # A last row for background.
            classes, boxes = truth.gt_classes, truth.gt_boxes.tensor
            labels.append(
                torch.cat([classes, classes.new_full((1,), self.num_classes)])[matched_gt]
            )
            targets.append(torch.cat([boxes, boxes.new_zeros(1, 4)])[matched_gt])
        return torch.stack(labels), torch.stack(targets)

    def losses(
        self,
        anchors: list[Boxes],
        logits: Tensor,
        distributions: Tensor,
        labels: Tensor,
        targets: Tensor,
    ) -> dict[str, Tensor]:
        """Sums of the losses over the cells, normalized as in the authors' code.

        Quality focal losses are divided by the number of foreground cells. The box losses of these
        are weighted by the predicted score, and divided by the sum of these scores. Both
        normalizers are means over all processes, and at least 1.

        Args:
            anchors: anchors of each level.
            logits: (N, R, K), in float32.
            distributions: (N, R, 4 * B), logits, in float32.
            labels, targets: output of :meth:`label_anchors`. A cell with label -1 has no loss.
        """
        is_object = (labels >= 0) & (labels != self.num_classes)
        positive = is_object.flatten().nonzero().squeeze(1)
        get_event_storage().put_scalar("num_pos_anchors", len(positive) / len(labels))
        boxes = Boxes.cat(anchors).tensor[positive % labels.shape[1]]
        logits, distributions, labels, targets = (
            x.flatten(0, 1) for x in (logits, distributions, labels, targets)
        )
        iou, giou, distribution = self.box_losses(distributions[positive], boxes, targets[positive])

        quality = torch.zeros_like(logits[:, 0])
        quality[positive] = iou
        # The quality of background is 0 for every class.
        classes = labels.clamp(0, self.num_classes - 1)
        cls = quality_focal_losses(logits, classes, quality, self.quality_beta)
        cls = torch.where(labels >= 0, cls, 0.0)
        score = logits.detach()[positive].sigmoid().amax(dim=1)

        totals = torch.stack([score.new_full((), len(positive)), score.sum()])
        num_positives, total_score = _mean_over_processes(totals).clamp(min=1)
        return {
            "loss_cls": cls.sum() / num_positives,
            "loss_box_reg": (score * giou).sum() / total_score,
            "loss_dfl": (score * distribution).sum() / total_score,
        }

    def box_losses(
        self, distributions: Tensor, anchors: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """IoU and losses of predicted boxes.

        Args:
            distributions: (S, 4 * B), logits.
            anchors, targets: (S, 4), XYXY in pixels.

        Returns:
            (S,) each: the IoU, which is the target of the score, without gradient; the generalized
            IoU loss and the distribution focal loss, multiplied by their weights.
        """
        boxes = self.box2box_transform.apply_deltas(distributions, anchors)
        iou, giou = elementwise_box_giou(boxes, targets)
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
        """Detections of each image after NMS per class, in pixels of the input."""
        anchors = self.anchor_generator(features)
        logits, distributions = self._transpose_dense_predictions(predictions, self.dims)
        results = []
        for image, size in enumerate(images.image_sizes):
            detections = self._decode_multi_level_predictions(
                anchors,
                [x[image].sigmoid() for x in logits],
                [x[image] for x in distributions],
                self.test_score_thresh,
                self.test_topk_candidates,
                size,
            )
            keep = batched_nms(
                detections.pred_boxes.tensor,
                detections.scores,
                detections.pred_classes,
                self.test_nms_thresh,
            )
            results.append(detections[keep[: self.max_detections_per_image]])
        return results


def _mean_over_processes(totals: Tensor) -> Tensor:
    """Mean over processes; ``totals`` is changed in place."""
    if comm.get_world_size() > 1:
        torch.distributed.all_reduce(totals)
    return totals / comm.get_world_size()


class GFLHead(RetinaNetHead):
    """RetinaNet's head with one anchor per cell and distributions of box edges."""

    @configurable
    def __init__(
        self, *, input_shape: list[ShapeSpec], conv_dims: list[int], reg_max: int, **args: Any
    ) -> None:
        """
        Args:
            input_shape: shapes of the L levels.
            conv_dims: channels of the convolutions of each of the two branches.
            reg_max: largest distance in cells; B = reg_max + 1.
            args: see :class:`RetinaNetHead`.
        """
        super().__init__(input_shape=input_shape, conv_dims=conv_dims, num_anchors=1, **args)
        self.bbox_pred = nn.Conv2d(conv_dims[-1], 4 * (reg_max + 1), kernel_size=3, padding=1)
        nn.init.normal_(self.bbox_pred.weight, std=0.01)
        nn.init.zeros_(self.bbox_pred.bias)
        # Factor on the logits of the distributions, the only weight that levels do not share.
        self.scales = nn.Parameter(torch.ones(len(input_shape)))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict:
        channels, keys = input_shape[0].channels, cfg.MODEL.GFL
        return {
            "input_shape": input_shape,
            "num_classes": keys.NUM_CLASSES,
            "conv_dims": [channels] * keys.NUM_CONVS,
            "norm": keys.NORM,
            "prior_prob": keys.PRIOR_PROB,
            "reg_max": keys.REG_MAX,
        }

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Class logits (N, K, H, W) and distribution logits (N, 4 * B, H, W) of each level."""
        logits, distributions = [], []
        for feature, scale in zip(features, self.scales, strict=True):
            logits.append(self.cls_score(self.cls_subnet(feature)))
            distributions.append(scale * self.bbox_pred(self.bbox_subnet(feature)))
        return logits, distributions


class IntegralTransform(Box2BoxTransformLinear):
    """Detectron2's linear box transform, with expected distances computed from distributions.

    A head predicts, and ``apply_deltas`` takes, 4 * B logits: distributions of the distance from a
    cell's center to the left, upper, right and lower side, in cells.
    """

    def __init__(self, reg_max: int, anchor_scale: float):
        """
        Args:
            reg_max: largest distance, in cells.
            anchor_scale: side of an anchor, in cells.
        """
        super().__init__(normalize_by_size=True)
        self.reg_max = reg_max
        self.anchor_scale = anchor_scale

    def distances(self, logits: Tensor) -> Tensor:
        """Expected distances (S, 4), in cells, from logits (S, 4 * B)."""
        probabilities = logits.float().unflatten(1, (4, self.reg_max + 1)).softmax(dim=2)
        bins = torch.arange(self.reg_max + 1, device=logits.device, dtype=torch.float32)
        return (probabilities * bins).sum(dim=2)

    def get_deltas(self, src_boxes: Tensor, target_boxes: Tensor) -> Tensor:
        """Distances (S, 4), in cells, from the centers of anchors (S, 4) to the sides of boxes."""
        return super().get_deltas(src_boxes, target_boxes) * self.anchor_scale

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """Boxes (S, 4) from logits (S, 4 * B) at anchors (S, 4)."""
        return super().apply_deltas(self.distances(deltas) / self.anchor_scale, boxes)


# Least distance in pixels of a cell's center from the sides of its box, as in the authors' code.
CENTER_MARGIN = 0.01


@torch.no_grad()
def assign_cells(boxes: Boxes, anchors: list[Boxes], topk: int) -> tuple[Tensor, Tensor]:
    """Assign each cell to an instance or to background by ATSS (arXiv 1912.02424).

    Candidates of an instance are the ``topk`` cells of every level whose centers are nearest to
    that of its box. A candidate matches if the IoU of its anchor and the box is at least the mean
    plus the standard deviation over the candidates, and if its center lies in the box. A cell that
    matches several instances is assigned to the one with the largest IoU.

    Args:
        boxes: G ground-truth boxes, in pixels of the detector's input.
        anchors: anchors of each level, one per cell.
        topk: candidates per level; a level with fewer cells has all of them as candidates.

    Returns:
        matched_gt (R,), the index of an instance, G for background; best (G,), the candidate with
        the largest IoU, also if no cell matches the instance, among equal ones the nearest of its
        level.
    """
    cells = Boxes.cat(anchors)
    iou = anchor_iou(boxes, cells)
    centers = cells.get_centers()
    offset = boxes.get_centers()[:, None] - centers
    distance = torch.hypot(*offset.unbind(dim=2))  # (G, R)

    by_level, first = [], 0
    for level in distance.split([len(x) for x in anchors], dim=1):
        k = min(topk, level.shape[1])
        by_level.append(first + level.topk(k, dim=1, largest=False).indices)
        first += level.shape[1]
    candidates = torch.cat(by_level, dim=1)  # (G, C)

    overlap = iou.gather(1, candidates)
    mean = overlap.mean(dim=1, keepdim=True)
    # Unbiased, as in the authors' code; 0 for a single candidate.
    variance = ((overlap - mean) ** 2).sum(dim=1, keepdim=True) / max(overlap.shape[1] - 1, 1)
    x, y = centers[candidates].unbind(dim=2)
    left, top, right, bottom = boxes.tensor[:, :, None].unbind(dim=1)
    inside = torch.stack([x - left, y - top, right - x, bottom - y]).amin(dim=0) > CENTER_MARGIN
    matches = inside & (overlap >= mean + variance.sqrt())

    # The last row is the largest where a cell matches no instance.
    claim = iou.new_full((len(boxes) + 1, len(cells)), -2.0)
    claim[-1] = -1.0
    claim[:-1].scatter_(1, candidates, torch.where(matches, overlap, -2.0))
    best = candidates.gather(1, overlap.argmax(dim=1, keepdim=True)).squeeze(1)
    return claim.argmax(dim=0), best
