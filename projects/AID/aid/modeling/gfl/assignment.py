"""ATSS: which cells learn which instance (Zhang et al., CVPR 2020, arXiv 1912.02424).

Shape letters:

    G: ground-truth instances of one image    C: candidates of an instance, all levels
    R: cells of one image, all levels
"""

import torch
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor

__all__ = ["assign_cells"]

# Pixels by which the center of a cell lies inside a box that it learns, as the authors have it.
MARGIN = 0.01


@torch.no_grad()
def assign_cells(boxes: Boxes, anchors: list[Boxes], topk: int) -> tuple[Tensor, Tensor]:
    """Assign each cell to an instance, or to nobody.

    Candidates of an instance are the ``topk`` cells of every level whose centers are nearest to its
    own. Of them it gets those whose anchors overlap it by at least the mean plus the standard
    deviation of its candidates' overlaps, and whose centers lie in its box. What several instances
    get belongs to the one that it overlaps most.

    Args:
        boxes: (G), ground truth in pixels of the detector's input.
        anchors: of each level, one per cell.
        topk: candidates per level; all cells of a level that has fewer.

    Returns:
        owner (R,), the index of an instance, G for nobody; best (G,), the candidate that overlaps
        an instance most, also of one that owns nothing, and the nearest of equal ones on its level.
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
    inside = torch.stack([x - left, y - top, right - x, bottom - y]).amin(dim=0) > MARGIN
    is_own = inside & (overlap >= mean + variance.sqrt())

    # A last row that wins where nobody owns a cell.
    claim = iou.new_full((len(boxes) + 1, len(cells)), -2.0)
    claim[-1] = -1.0
    claim[:-1].scatter_(1, candidates, torch.where(is_own, overlap, -2.0))
    best = candidates.gather(1, overlap.argmax(dim=1, keepdim=True)).squeeze(1)
    return claim.argmax(dim=0), best
