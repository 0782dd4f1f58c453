"""Output layers that merge a teacher's classes into its student's.

Shape letters: S RoIs, N images, A anchors per cell, T classes of the teacher, K of the student.
"""

from collections.abc import Callable, Sequence

import torch
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, StandardROIHeads
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from torch import Tensor, nn

from ..class_map import ClassMap
from .base import unmappable

__all__ = ["LogSumExpOfGroups", "MaxOfGroups", "merge_box_predictor", "merge_masks"]

# Logit of an empty group: its probability is 0 in float32, and it is finite in half precision.
NEVER = -1e4


class _Groups(nn.Module):
    """Groups of the teacher's classes, one for each output."""

    def __init__(self, groups: Sequence[Sequence[int]]):
        super().__init__()
        self.sizes = [len(group) for group in groups]
        order = torch.tensor([i for group in groups for i in group], dtype=torch.long)
        self.register_buffer("order", order, persistent=False)

    def merge(self, x: Tensor, dim: int, reduce: Callable[..., Tensor]) -> Tensor:
        """Reduce dimension ``dim`` of T classes to one value for each group."""
        groups = x.index_select(dim, self.order).split(self.sizes, dim)
        # The sum over an empty group is 0.
        merged = [reduce(y, dim=dim) if y.shape[dim] else y.sum(dim) + NEVER for y in groups]
        return torch.stack(merged, dim=dim)


class LogSumExpOfGroups(_Groups):
    """Logits (S, K) whose softmax is the sum over each group of the softmax of (S, T)."""

    def forward(self, logits: Tensor) -> Tensor:
        return self.merge(logits.float(), 1, torch.logsumexp)


class MaxOfGroups(_Groups):
    """Largest logit of each group, from (N, A * T, ...) to (N, A * K, ...)."""

    def __init__(self, groups: Sequence[Sequence[int]], num_classes: int):
        """
        Args:
            groups: ids of the classes in each group.
            num_classes: T.
        """
        super().__init__(groups)
        self.num_classes = num_classes

    def forward(self, logits: Tensor) -> Tensor:
        by_anchor = logits.unflatten(1, (-1, self.num_classes))
        return self.merge(by_anchor, 2, torch.amax).flatten(1, 2)


class _BestDeltas(nn.Module):
    """Class-specific box deltas (S, K * 4) of the class with the largest logit in each group."""

    def __init__(self, scores: nn.Module, deltas: nn.Module, groups: Sequence[Sequence[int]]):
        """
        Args:
            scores, deltas: layers that predict logits (S, T + 1) and deltas (S, T * 4).
            groups: ids of the classes in each group; no group is empty.
        """
        super().__init__()
        self.scores, self.deltas = scores, deltas
        self.groups = _Groups(groups)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.scores(x)
        deltas = self.deltas(x).unflatten(1, (scores.shape[1] - 1, -1))
        members = self.groups.order.split(self.groups.sizes)
        best = torch.stack([group[scores[:, group].argmax(dim=1)] for group in members], dim=1)
        return deltas.gather(1, best[..., None].expand(-1, -1, deltas.shape[2])).flatten(1)


def merge_box_predictor(predictor: nn.Module, class_map: ClassMap) -> None:
    """Merge the classes of a box predictor, in place.

    Class-specific boxes are those of the group's class with the largest score, or of all classes if
    the group is empty.

    Raises:
        AIDError: the predictor is not Detectron2's.
    """
    if not isinstance(predictor, FastRCNNOutputLayers):
        raise unmappable(predictor)
    num_classes, groups = len(class_map.teacher), class_map.groups
    scores, deltas = predictor.cls_score, predictor.bbox_pred
    merged: nn.Module
    if predictor.use_sigmoid_ce:  # the last logit is not trained
        merged = MaxOfGroups([*groups, [num_classes]], num_classes + 1)
    else:
        merged = LogSumExpOfGroups([*groups, [*class_map.background, num_classes]])
    predictor.cls_score = nn.Sequential(scores, merged)
    if deltas.out_features > len(predictor.box2box_transform.weights):
        all_classes = list(range(num_classes))
        predictor.bbox_pred = _BestDeltas(scores, deltas, [x or all_classes for x in groups])
    predictor.num_classes = len(class_map.student)


def merge_masks(heads: StandardROIHeads, class_map: ClassMap) -> None:
    """Merge the class-specific masks of RoI heads, if they have any, in place.

    Raises:
        AIDError: the mask head is not Detectron2's.
    """
    if not heads.mask_on:
        return
    head = heads.mask_head
    if not isinstance(head, MaskRCNNConvUpsampleHead):
        raise unmappable(head)
    if head.predictor.out_channels > 1:
        masks = MaxOfGroups(class_map.groups, len(class_map.teacher))
        head.predictor = nn.Sequential(head.predictor, masks)
