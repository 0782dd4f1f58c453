"""Losses of anchors per instance: what the RPN and dense detectors have in common.

Shape letters as in base.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor, nn

from .base import InstanceLosses, Targets, box_losses, mean_by

__all__ = ["Match", "anchor_losses", "losses_per_instance"]

# From the G boxes of an image to, for its R anchors, the index of an instance (R,), and whether the
# anchor is its positive 1, a negative 0 or neither -1 (R,); and for every instance the anchor that
# it keeps where it has no positive (G,).
Match = Callable[[Boxes], tuple[Tensor, Tensor, Tensor]]


def anchor_losses(
    head: nn.Module,
    classification_losses: Callable[[Tensor, Tensor], Tensor],
    logits: Tensor,
    deltas: Tensor,
    anchors: list[Boxes],
    truth: Targets,
    levels: tuple[str, ...],
    prefix: str = "",
) -> InstanceLosses:
    """Classification and box loss of every instance, and of the background, over anchors.

    Args:
        head: an RPN or a dense detector, with its ``anchor_matcher`` and box loss.
        classification_losses: from owners (S,) and logits (S, ...) to losses (S,), where the owner
            ``truth.nobody`` stands for background.
        logits: (N, R) or (N, R, K).
        deltas: (N, R, 4).
        anchors: of each level, the same for all images.
        truth: ground truth of the batch.
        levels: names of the levels.
        prefix: of the names of the parts, "cls" and "box".
    """
    logits, deltas = logits.float(), deltas.float()
    boxes = Boxes.cat(anchors).tensor.expand_as(deltas)
    logits, deltas, boxes = (x.flatten(0, 1) for x in (logits, deltas, boxes))

    def losses(owner: Tensor, at: Tensor | slice) -> tuple[Tensor, Tensor]:
        cls = classification_losses(owner, logits[at])
        return cls, box_losses(head, boxes[at], deltas[at], truth.boxes[owner])

    match = partial(match_by_overlap, head.anchor_matcher, Boxes.cat(anchors))
    return losses_per_instance(losses, match, anchors, truth, levels, prefix)


def losses_per_instance(
    losses: Callable[[Tensor, Tensor | slice], tuple[Tensor, Tensor]],
    match: Match,
    anchors: list[Boxes],
    truth: Targets,
    levels: tuple[str, ...],
    prefix: str = "",
) -> InstanceLosses:
    """The same for a detector that matches in a way of its own, or has other losses.

    Args:
        losses: from owners (S,), of which ``truth.nobody`` stands for background, and the index of
            their anchors among all N * R to classification and box losses (S,).
        match: an image's boxes with the anchors.
        anchors, truth, levels, prefix: see :func:`anchor_losses`.
    """
    matches = match_anchors(match, anchors, truth)
    best = matches.best
    cls, box = losses(matches.owner.flatten(), slice(None))
    cls_at_best, box_at_best = losses(torch.arange(len(best), device=best.device), best)
    return InstanceLosses(
        levels=levels,
        parts={
            prefix + "cls": matches.per_instance(cls, cls_at_best),
            prefix + "box": matches.per_instance(box, box_at_best),
        },
        background={prefix + "cls": matches.background(cls)},
        level_share=matches.level_share(),
    )


@dataclass
class AnchorMatches:
    """Who owns which anchor.

    Attributes:
        owner: (N, R), the instance that an anchor is a positive of, else ``targets.nobody``.
        negative: (N, R), bool, anchors that the detector trains as background.
        level: (R,), the level of each anchor, in [0, L).
        best: (G,), index into the N * R anchors: the one that overlaps the instance most.
        num_levels: L.
    """

    owner: Tensor
    negative: Tensor
    level: Tensor
    best: Tensor
    num_levels: int

    def per_instance(self, losses: Tensor, losses_at_best: Tensor) -> Tensor:
        """Mean over an instance's positives; the loss at its best anchor if it has none.

        Args:
            losses: (N * R,), of each anchor against the instance that owns it.
            losses_at_best: (G,), of each instance's best anchor against that instance.

        Returns:
            (G,)
        """
        mean, count = mean_by(self.owner.flatten(), losses, len(self.best))
        return torch.where(count > 0, mean, losses_at_best)

    def background(self, losses: Tensor) -> Tensor:
        """Mean of ``losses`` (N * R,) over the negatives of each image and level: (N, L)."""
        num_images = len(self.negative)
        image = torch.arange(num_images, device=losses.device)[:, None]
        region = torch.where(
            self.negative, image * self.num_levels + self.level, num_images * self.num_levels
        )
        mean, _ = mean_by(region.flatten(), losses, num_images * self.num_levels)
        return mean.view(num_images, self.num_levels)

    def level_share(self) -> Tensor:
        """The share of each instance's positives on each level: (G, L), rows sum to 1."""
        num_instances, num_anchors = len(self.best), len(self.level)
        cell = self.owner * self.num_levels + self.level
        counts = torch.zeros((num_instances + 1) * self.num_levels, device=cell.device)
        counts.index_add_(0, cell.flatten(), torch.ones(cell.numel(), device=cell.device))
        counts = counts.view(-1, self.num_levels)[:num_instances]
        only_best = F.one_hot(self.level[self.best % num_anchors], self.num_levels).float()
        has_positives = counts.sum(dim=1, keepdim=True) > 0
        counts = torch.where(has_positives, counts, only_best)
        return counts / counts.sum(dim=1, keepdim=True)


def match_anchors(match: Match, anchors: list[Boxes], targets: Targets) -> AnchorMatches:
    """Match every anchor in the detector's own way, without subsampling.

    An instance may be left without positives, where each of its anchors overlaps another instance
    more; such an instance keeps its best anchor for itself.

    Args:
        match: an image's boxes with the anchors.
        anchors: the anchors of each level, of one image (they are the same for all images).
        targets: ground truth of the N images.
    """
    owners, negatives, best = [], [], []
    level = torch.cat([torch.full((len(a),), i) for i, a in enumerate(anchors)])
    for image in range(len(targets.first) - 1):
        of_image = targets.of_image(image)
        index, label, best_of_image = match(Boxes(targets.boxes[of_image]))
        owners.append(torch.where(label == 1, index + of_image.start, targets.nobody))
        negatives.append(label == 0)
        best.append(best_of_image + image * len(level))
    return AnchorMatches(
        owner=torch.stack(owners),
        negative=torch.stack(negatives),
        level=level.to(anchors[0].device),
        best=torch.cat(best),
        num_levels=len(anchors),
    )


def match_by_overlap(matcher: Matcher, anchors: Boxes, boxes: Boxes) -> tuple[Tensor, ...]:
    """As Detectron2's matcher does it; the best anchor is the one that overlaps most."""
    iou = pairwise_iou(boxes, anchors)
    return *matcher(iou), iou.argmax(dim=1)
