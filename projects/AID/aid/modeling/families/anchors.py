"""Per-instance losses over anchors, for the RPN and the dense detectors.

Shape letters as in base.py.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes
from torch import Tensor, nn

from ..boxes import anchor_iou
from .base import PerInstanceLosses, Targets, box_losses, mean_by
from .ignore_regions import boxes_in_regions

__all__ = [
    "AnchorLosses",
    "Match",
    "anchor_losses",
    "losses_per_instance",
    "match_anchors",
    "match_by_overlap",
]

# From the G boxes of an image to, for its R anchors, the index of an instance (R,) and a label
# (R,): 1 for a positive of that instance, 0 for a negative, -1 for neither; and for every instance
# the anchor that represents it if it has no positive (G,).
Match = Callable[[Boxes], tuple[Tensor, Tensor, Tensor]]

# From the matched instance (S,) of samples, where the background index stands for background, and
# the index of their anchors among all N * R, to the losses (S,) by component, "cls" among them.
AnchorLosses = Callable[[Tensor, Tensor | slice], dict[str, Tensor]]

# From the R anchors of an image and its regions that are neither object nor background to whether
# each anchor is in one of them (R,), bool.
InRegions = Callable[[Boxes, Boxes], Tensor]


def anchor_losses(
    head: nn.Module,
    match: Match,
    classification_losses: Callable[[Tensor, Tensor], Tensor],
    logits: Tensor,
    deltas: Tensor,
    anchors: list[Boxes],
    truth: Targets,
    levels: tuple[str, ...],
    prefix: str = "",
) -> PerInstanceLosses:
    """Per-instance losses of a head with Detectron2's box encoding and box loss.

    Args:
        head: an RPN or a dense detector; see :func:`box_losses`.
        match: matching rule of an image's boxes with the anchors.
        classification_losses: from matched instances (S,) and logits (S, ...) to losses (S,);
            ``truth.background_index`` stands for background.
        logits: (N, R) or (N, R, K).
        deltas: (N, R, 4).
        anchors, truth, levels, prefix: see :func:`losses_per_instance`.
    """
    logits, deltas = logits.float(), deltas.float()
    boxes = Boxes.cat(anchors).tensor.expand_as(deltas)
    logits, deltas, boxes = (x.flatten(0, 1) for x in (logits, deltas, boxes))

    def losses(matched_gt: Tensor, at: Tensor | slice) -> dict[str, Tensor]:
        return {
            "cls": classification_losses(matched_gt, logits[at]),
            "box": box_losses(head, boxes[at], deltas[at], truth.boxes[matched_gt]),
        }

    return losses_per_instance(losses, match, anchors, truth, levels, prefix)


def losses_per_instance(
    losses: AnchorLosses,
    match: Match,
    anchors: list[Boxes],
    truth: Targets,
    levels: tuple[str, ...],
    prefix: str = "",
    in_regions: InRegions = boxes_in_regions,
) -> PerInstanceLosses:
    """Per-instance losses of a head with a matching rule and losses of its own.

    Args:
        losses: of samples, by component.
        match: matching rule of an image's boxes with the anchors.
        anchors: of each level, the same for all images.
        truth: ground truth of the batch.
        levels: names of the levels.
        prefix: of the names of the components.
        in_regions: see :data:`InRegions`.
    """
    matches = match_anchors(match, anchors, truth, in_regions)
    best = matches.best
    of_anchors = losses(matches.matched_gt.flatten(), slice(None))
    at_best = losses(torch.arange(len(best), device=best.device), best)
    components = {k: matches.per_instance(x, at_best[k]) for k, x in of_anchors.items()}
    return PerInstanceLosses(
        levels=levels,
        components={prefix + k: x for k, x in components.items()},
        background={prefix + "cls": matches.background(of_anchors["cls"])},
        level_share=matches.level_share(),
    )


@dataclass
class AnchorMatches:
    """Anchor-to-instance assignment of a batch.

    Attributes:
        matched_gt: (N, R), the instance that an anchor is a positive of, else the background index.
        negative: (N, R), bool, anchors that the detector trains as background.
        level: (R,), level of each anchor, in [0, L).
        best: (G,), for each instance an index into the N * R anchors: the anchor that represents
            it if it has no positive.
        num_levels: L.
    """

    matched_gt: Tensor
    negative: Tensor
    level: Tensor
    best: Tensor
    num_levels: int

    def per_instance(self, losses: Tensor, losses_at_best: Tensor) -> Tensor:
        """Mean over the positives of an instance, or the loss at its best anchor if it has none.

        Args:
            losses: (N * R,), of each anchor against its matched instance.
            losses_at_best: (G,), of the best anchor of each instance against that instance.

        Returns:
            (G,)
        """
        mean, count = mean_by(self.matched_gt.flatten(), losses, len(self.best))
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
        """Share of the positives of each instance on each level: (G, L), rows sum to 1."""
        num_instances, num_anchors = len(self.best), len(self.level)
        cell = self.matched_gt * self.num_levels + self.level
        counts = torch.zeros((num_instances + 1) * self.num_levels, device=cell.device)
        counts.index_add_(0, cell.flatten(), torch.ones(cell.numel(), device=cell.device))
        counts = counts.view(-1, self.num_levels)[:num_instances]
        only_best = F.one_hot(self.level[self.best % num_anchors], self.num_levels).float()
        has_positives = counts.sum(dim=1, keepdim=True) > 0
        counts = torch.where(has_positives, counts, only_best)
        return counts / counts.sum(dim=1, keepdim=True)


def match_anchors(
    match: Match,
    anchors: list[Boxes],
    truth: Targets,
    in_regions: InRegions = boxes_in_regions,
) -> AnchorMatches:
    """Match every anchor of a batch, without subsampling.

    An instance has no positive if each of its anchors overlaps another instance more.

    Args:
        match: matching rule of an image's boxes with the anchors.
        anchors: of each level, of one image (they are the same for all images).
        truth: ground truth of the N images.
        in_regions: see :data:`InRegions`.
    """
    matched, negatives, best = [], [], []
    all_anchors = Boxes.cat(anchors)
    device = all_anchors.device
    level = torch.cat([torch.full((len(a),), i, device=device) for i, a in enumerate(anchors)])
    for image in range(len(truth.first) - 1):
        of_image = truth.of_image(image)
        index, label, best_of_image = match(Boxes(truth.boxes[of_image]))
        matched.append(torch.where(label == 1, index + of_image.start, truth.background_index))
        negatives.append((label == 0) & ~in_regions(all_anchors, truth.regions[image]))
        best.append(best_of_image + image * len(level))
    return AnchorMatches(
        matched_gt=torch.stack(matched),
        negative=torch.stack(negatives),
        level=level,
        best=torch.cat(best),
        num_levels=len(anchors),
    )


def match_by_overlap(
    matcher: Matcher, anchors: Boxes, boxes: Boxes
) -> tuple[Tensor, Tensor, Tensor]:
    """A :data:`Match` by Detectron2's matcher; the best anchor is the one that overlaps most."""
    iou = anchor_iou(boxes, anchors)
    matches, labels = matcher(iou)
    return matches, labels, iou.argmax(dim=1)
