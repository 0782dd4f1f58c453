"""The detector: Generalized Focal Loss (Li et al., NeurIPS 2020, arXiv 2006.04388).

Shape letters:

    N: images    R: cells of one image, all levels    S: cells    K: classes
    B: bins of a distribution

=====
What GFL predicts in every cell.

Shape letters:

    N: images    L: levels    K: classes    B: bins of a distribution    H, W: of a level

=====
Boxes as distributions of their distances from a cell.

Shape letters:

    S: cells    B: bins of a distribution, one per whole distance 0 ... reg_max, in cells

=====
ATSS: which cells learn which instance (Zhang et al., CVPR 2020, arXiv 1912.02424).

Shape letters:

    G: ground-truth instances of one image    C: candidates of an instance, all levels
    R: cells of one image, all levels

=====
The losses of GFL (arXiv 2006.04388), one value per cell.

Shape letters:

    S: cells    K: classes    B: bins of a distribution, one per whole distance 0 ... reg_max
"""

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, batched_nms
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.box_regression import Box2BoxTransformLinear
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from ...utils.errors import AIDError
from ..boxes import elementwise_box_giou

__all__ = [
    "GFL",
    "GFLHead",
    "IntegralTransform",
    "assign_cells",
    "distribution_focal_losses",
    "quality_focal_losses",
    "soft_quality_focal_losses",
]


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


class IntegralTransform(Box2BoxTransformLinear):
    """Detectron2's transform of distances to boxes, for distances that are expectations.

    What a head predicts, and ``apply_deltas`` takes, are 4 * B logits: of the distances of a cell's
    center from the left, upper, right and lower side, in cells (strides of the level).
    """

    def __init__(self, reg_max: int, anchor_scale: float):
        """
        Args:
            reg_max: the largest distance, in cells.
            anchor_scale: side of an anchor, in cells.
        """
        super().__init__(normalize_by_size=True)
        self.reg_max = reg_max
        self.anchor_scale = anchor_scale

    def distances(self, logits: Tensor) -> Tensor:
        """Expected distances (S, 4), in cells, of logits (S, 4 * B)."""
        probabilities = logits.float().unflatten(1, (4, self.reg_max + 1)).softmax(dim=2)
        bins = torch.arange(self.reg_max + 1, device=logits.device, dtype=torch.float32)
        return (probabilities * bins).sum(dim=2)

    def get_deltas(self, src_boxes: Tensor, target_boxes: Tensor) -> Tensor:
        """Distances (S, 4), in cells, of the centers of anchors from the sides of boxes (S, 4)."""
        return super().get_deltas(src_boxes, target_boxes) * self.anchor_scale

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """Boxes (S, 4) of logits (S, 4 * B) at anchors (S, 4)."""
        return super().apply_deltas(self.distances(deltas) / self.anchor_scale, boxes)


# Pixels by which the center of a cell lies inside a box that it learns, as the authors have it.
CENTER_MARGIN = 0.01


@torch.no_grad()
def assign_cells(boxes: Boxes, anchors: list[Boxes], topk: int) -> tuple[Tensor, Tensor]:
    """Assign each cell to an instance or to background.

    Candidates of an instance are the ``topk`` cells of every level whose centers are nearest to its
    own. Of them it gets those whose anchors overlap it by at least the mean plus the standard
    deviation of its candidates' overlaps, and whose centers lie in its box. A cell that several
    instances get belongs to the one that it overlaps most.

    Args:
        boxes: (G), ground truth in pixels of the detector's input.
        anchors: of each level, one per cell.
        topk: candidates per level; all cells of a level that has fewer.

    Returns:
        matched_gt (R,), the index of an instance, G for background; best (G,), the candidate that
        overlaps an instance most, also if it gets no cell; of equal ones the nearest on its level.
    """
    cells = Boxes.cat(anchors)
    iou = pairwise_iou(boxes, cells)
    centers = cells.get_centers()
    offset = boxes.get_centers()[:, None] - centers
    distance = torch.hypot(*offset.unbind(dim=2))  # (G, R)

    candidates, first = [], 0
    for level in distance.split([len(x) for x in anchors], dim=1):
        k = min(topk, level.shape[1])
        candidates.append(first + level.topk(k, dim=1, largest=False).indices)
        first += level.shape[1]
    candidates = torch.cat(candidates, dim=1)  # (G, C)

    overlap = iou.gather(1, candidates)
    mean = overlap.mean(dim=1, keepdim=True)
    # Of a sample, as the authors take it; a single candidate deviates from nothing.
    variance = ((overlap - mean) ** 2).sum(dim=1, keepdim=True) / max(overlap.shape[1] - 1, 1)
    x, y = centers[candidates].unbind(dim=2)
    left, top, right, bottom = boxes.tensor[:, :, None].unbind(dim=1)
    inside = torch.stack([x - left, y - top, right - x, bottom - y]).amin(dim=0) > CENTER_MARGIN
    is_own = inside & (overlap >= mean + variance.sqrt())

    # A last row that wins where no instance gets a cell.
    claim = iou.new_full((len(boxes) + 1, len(cells)), -2.0)
    claim[-1] = -1.0
    claim[:-1].scatter_(1, candidates, torch.where(is_own, overlap, -2.0))
    best = candidates.gather(1, overlap.argmax(dim=1, keepdim=True)).squeeze(1)
    return claim.argmax(dim=0), best


# Distances end this far below the last bin, so that each has a bin on its right: the authors'.
BIN_MARGIN = 0.1


def quality_focal_losses(logits: Tensor, classes: Tensor, quality: Tensor, beta: float) -> Tensor:
    """Cross-entropy of a score with the quality of its box, times ``|quality - score| ** beta``.

    Args:
        logits: (S, K).
        classes: (S,), in [0, K); that of a cell without instance does not matter.
        quality: (S,), in [0, 1], what the score of that class should be; 0 without instance.
        beta: how little is learned where the score is nearly right.

    Returns:
        (S,), summed over classes.
    """
    target = torch.zeros_like(logits).scatter_(1, classes[:, None], quality[:, None])
    return soft_quality_focal_losses(logits, target, beta)


def soft_quality_focal_losses(logits: Tensor, scores: Tensor, beta: float) -> Tensor:
    """The same with a target for each class.

    Args:
        logits, scores: (S, K), what is said, and in [0, 1] what should be.
        beta: see :func:`quality_focal_losses`.

    Returns:
        (S,), summed over classes.
    """
    entropy = F.binary_cross_entropy_with_logits(logits, scores, reduction="none")
    return (entropy * (scores - logits.sigmoid()).abs() ** beta).sum(dim=1)


def distribution_focal_losses(logits: Tensor, distances: Tensor) -> Tensor:
    """Cross-entropy of a distribution with the two bins beside the true distance.

    The nearer of the two bins weighs more, so that the true distance is the expectation of what is
    learned.

    Args:
        logits: (S, 4 * B).
        distances: (S, 4), in cells; clamped to what the bins can say.

    Returns:
        (S,), the mean over the four sides.
    """
    log_p = logits.unflatten(1, (4, -1)).log_softmax(dim=2)
    distances = distances.clamp(0, log_p.shape[2] - 1 - BIN_MARGIN)
    left = distances.floor()
    share = distances - left  # of the right bin
    index = left.long()[..., None]
    log_left, log_right = (log_p.gather(2, i).squeeze(2) for i in (index, index + 1))
    return -((1 - share) * log_left + share * log_right).mean(dim=1)
