"""KITTI's official metric of 2D detection, as its development kit computes it.

Rules and constants are those of the object benchmark's kit (``evaluate_object.cpp``), in double
precision. Shape letters: G ground-truth objects and D detections of all images, K thresholds.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from ..data.kitti_labels import CLASSES, KITTIObject

__all__ = ["DIFFICULTIES", "AveragePrecision", "kitti_average_precision"]

DIFFICULTIES = ("easy", "moderate", "hard")
MIN_HEIGHT = {"easy": 40, "moderate": 25, "hard": 25}  # pixels
MAX_OCCLUSION = {"easy": 0, "moderate": 1, "hard": 2}
MAX_TRUNCATION = {"easy": 0.15, "moderate": 0.30, "hard": 0.50}
# A match, and the share of a detection that lies in a DontCare region, must be above these.
MIN_OVERLAP = {"Car": 0.7, "Pedestrian": 0.5, "Cyclist": 0.5}
# Whom to find instead of a class is no mistake.
NEIGHBOR = {"Car": "Van", "Pedestrian": "Person_sitting"}
# Recall positions 0, 1/40, ..., 1.
NUM_POSITIONS = 41


@dataclass(frozen=True)
class AveragePrecision:
    """AP of one class at one difficulty.

    Attributes:
        precision: at the recall positions 0, 1/40, ..., 1, each the best at that recall or above.
        num_valid: ground-truth objects that count. With fewer than 41 there are fewer thresholds
            than recall positions, so that even a perfect detector stays below 100.
    """

    precision: tuple[float, ...]
    num_valid: int

    @property
    def r40(self) -> float:
        """Percent, mean precision at the recall positions 1/40, 2/40, ..., 1 (since 2019)."""
        return 100 * float(np.mean(self.precision[1:]))

    @property
    def r11(self) -> float:
        """Percent, at 0, 0.1, ..., 1 (older papers)."""
        return 100 * float(np.mean(self.precision[::4]))


def kitti_average_precision(
    images: Iterable[tuple[Sequence[KITTIObject], Sequence[KITTIObject]]],
) -> dict[str, dict[str, AveragePrecision]]:
    """AP of every class and difficulty.

    Args:
        images: ground truth and detections of each image, both in the order of their files, which
            decides between equals.

    Returns:
        {class: {difficulty: AP}}, always with all of them; 0 where no object counts.
    """
    table = _Table(images)
    return {
        name: {difficulty: _evaluate(table, name, difficulty) for difficulty in DIFFICULTIES}
        for name in CLASSES
    }


class _Table:
    """Objects of all images as arrays, and which of them overlap.

    Attributes:
        truth_type, height, occluded, truncated: (G,), of the ground truth.
        found_type, found_height, score: (D,), of the detections.
        dont_care: (D,), the largest share of a detection's area in one DontCare region.
        pair_truth, pair_found, iou: (P,), pairs that could match, by ground truth, then detection.
    """

    def __init__(self, images: Iterable[tuple[Sequence[KITTIObject], Sequence[KITTIObject]]]):
        all_truth, all_found, dont_care, pairs = [], [], [], []
        lowest = min(MIN_OVERLAP.values())
        for truth, found in images:
            boxes, found_boxes = _boxes(truth), _boxes(found)
            # Without an intersection there is no overlap, also of a box without area.
            with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
                inter, areas, found_areas = _intersections(boxes, found_boxes)
                iou = np.where(inter > 0, inter / (areas[:, None] + found_areas - inter), 0.0)
                share = np.where(inter > 0, inter / found_areas, 0.0)
            rows, columns = np.nonzero(iou > lowest)
            pairs.append((rows + len(all_truth), columns + len(all_found), iou[rows, columns]))
            regions = [x.type == "DontCare" for x in truth]
            dont_care.append(share[regions].max(axis=0, initial=0.0))
            all_truth.extend(truth)
            all_found.extend(found)
        self.truth_type = np.array([x.type for x in all_truth], dtype=object)
        self.height = np.array([x.bbox[3] - x.bbox[1] for x in all_truth])
        self.occluded = np.array([x.occluded for x in all_truth])
        self.truncated = np.array([x.truncated for x in all_truth])
        self.found_type = np.array([x.type for x in all_found], dtype=object)
        self.found_height = np.array([x.bbox[3] - x.bbox[1] for x in all_found])
        self.score = np.array([x.score for x in all_found], dtype=np.float64)
        self.dont_care = np.concatenate([np.zeros(0), *dont_care])
        none = (np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0))
        self.pair_truth, self.pair_found, self.iou = (
            np.concatenate(columns) for columns in zip(none, *pairs, strict=True)
        )


def _boxes(objects: Sequence[KITTIObject]) -> np.ndarray:
    return np.array([x.bbox for x in objects], dtype=np.float64).reshape(-1, 4)


def _intersections(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Areas of the intersections (A, B), and of the boxes, (A,) and (B,)."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    sides = (high - low).clip(min=0)
    return sides.prod(axis=2), *((x[:, 2:] - x[:, :2]).prod(axis=1) for x in (a, b))


def _evaluate(table: _Table, name: str, difficulty: str) -> AveragePrecision:
    same = table.truth_type == name
    valid = (
        same
        & (table.height >= MIN_HEIGHT[difficulty])
        & (table.occluded <= MAX_OCCLUSION[difficulty])
        & (table.truncated <= MAX_TRUNCATION[difficulty])
    )
    present = same | (table.truth_type == NEIGHBOR.get(name))
    # A detection that is too small to be asked for may match whatever its class is.
    small = table.found_height < MIN_HEIGHT[difficulty]
    active = ~small & (table.found_type == name)
    limit = MIN_OVERLAP[name]
    matching = present[table.pair_truth] & (small | active)[table.pair_found] & (table.iou > limit)
    candidates = _group(*(x[matching] for x in (table.pair_truth, table.pair_found, table.iou)))

    num_valid = int(valid.sum())
    hits = _first_pass(candidates, valid, active, table.score)
    thresholds = _thresholds(hits, num_valid)
    # The number of thresholds above a detection's score, that is, the first at which it is there.
    first = np.searchsorted(-thresholds, -table.score)
    counts = active & (table.dont_care <= limit)
    tp, used = _second_pass(candidates, valid, active, counts, first, len(thresholds))
    there = np.bincount(first[counts], minlength=len(thresholds) + 1).cumsum()[:-1]
    found = tp + there[: len(thresholds)] - used
    precision = np.zeros(NUM_POSITIONS)
    precision[: len(thresholds)] = np.divide(tp, found, out=np.zeros(len(tp)), where=found > 0)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return AveragePrecision(tuple(precision.tolist()), num_valid)


def _group(
    truth: np.ndarray, found: np.ndarray, iou: np.ndarray
) -> list[tuple[int, list[tuple[int, float]]]]:
    """[(ground truth, [(detection, IoU), ...])], in the order of the files."""
    pairs = zip(truth.tolist(), found.tolist(), iou.tolist(), strict=True)
    return [(g, [(d, x) for _, d, x in group]) for g, group in groupby(pairs, lambda pair: pair[0])]


def _first_pass(
    candidates: list, valid: np.ndarray, active: np.ndarray, score: np.ndarray
) -> list[float]:
    """Scores of the true positives when every ground truth takes the highest score."""
    scores, taken, hits = score.tolist(), set(), []
    for truth, pairs in candidates:
        free = [d for d, _ in pairs if d not in taken]
        if not free:
            continue
        best = max(free, key=scores.__getitem__)  # the first of equals
        taken.add(best)
        if valid[truth] and active[best]:
            hits.append(scores[best])
    return hits


def _thresholds(hits: list[float], num_valid: int) -> np.ndarray:
    """Scores at which recall comes nearest to the recall positions, descending: (K,), K <= 41."""
    hits = sorted(hits, reverse=True)
    thresholds, target = [], 0.0
    for i, score in enumerate(hits):
        last = i == len(hits) - 1
        left = (i + 1) / num_valid
        right = left if last else (i + 2) / num_valid
        if right - target < target - left and not last:
            continue
        thresholds.append(score)
        target += 1.0 / (NUM_POSITIONS - 1.0)
    return np.array(thresholds[:NUM_POSITIONS])


def _second_pass(
    candidates: list,
    valid: np.ndarray,
    active: np.ndarray,
    counts: np.ndarray,
    first: np.ndarray,
    num_thresholds: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Match at all thresholds at once: bit k of an integer stands for threshold k.

    Args:
        candidates: of :func:`_group`.
        valid: (G,), bool.
        active: (D,), bool.
        counts: (D,), bool, active and outside DontCare: a false positive if it is not used.
        first: (D,), the first threshold at which a detection is there.
        num_thresholds: K.

    Returns:
        True positives, and used detections that count: (K,) each.
    """
    everywhere = (1 << num_thresholds) - 1
    involved = {d for _, pairs in candidates for d, _ in pairs}
    free = {d: everywhere & ~((1 << int(first[d])) - 1) for d in involved}
    hits, used = [], []
    for truth, pairs in candidates:
        # The active one of greatest overlap; else the first small one. Equals in order of the file.
        order = sorted(pairs, key=lambda pair: (0, -pair[1]) if active[pair[0]] else (1, 0.0))
        still = everywhere
        for found, _ in order:
            taken = still & free[found]
            still ^= taken
            free[found] ^= taken
            if valid[truth] and active[found]:
                hits.append(taken)
            if counts[found]:
                used.append(taken)
    return _count_bits(hits, num_thresholds), _count_bits(used, num_thresholds)


def _count_bits(masks: list[int], num_bits: int) -> np.ndarray:
    """How many of the masks have each bit set: (num_bits,)."""
    bits = np.array(masks, dtype=np.int64)[:, None] >> np.arange(num_bits)
    return (bits & 1).sum(axis=0)
