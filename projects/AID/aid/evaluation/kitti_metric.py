"""KITTI's official metric of 2D detection.

Rules and constants are those of the object benchmark's development kit (``evaluate_object.cpp``),
in double precision.

Shape letters: G ground-truth objects of all images, D detections of all images, K thresholds.
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
# Lower limits (exclusive) of the IoU of a match, and of the share of a detection in a DontCare
# region that makes it ignored.
MIN_OVERLAP = {"Car": 0.7, "Pedestrian": 0.5, "Cyclist": 0.5}
# {class: similar type whose detection as this class is ignored}
NEIGHBOR = {"Car": "Van", "Pedestrian": "Person_sitting"}
# Recall positions 0, 1/40, ..., 1.
NUM_POSITIONS = 41


@dataclass(frozen=True)
class AveragePrecision:
    """AP of one class at one difficulty.

    Attributes:
        precision: at the recall positions 0, 1/40, ..., 1, maximum at each recall or above.
        num_valid: number of ground-truth objects of this difficulty. Below 41 there are fewer
            thresholds than recall positions, and even a perfect detector has an AP below 100.
    """

    precision: tuple[float, ...]
    num_valid: int

    @property
    def r40(self) -> float:
        """Mean precision, in percent, at recall 1/40, 2/40, ..., 1 (official since 2019)."""
        return 100 * float(np.mean(self.precision[1:]))

    @property
    def r11(self) -> float:
        """Mean precision, in percent, at recall 0, 0.1, ..., 1 (used until 2019)."""
        return 100 * float(np.mean(self.precision[::4]))


def kitti_average_precision(
    images: Iterable[tuple[Sequence[KITTIObject], Sequence[KITTIObject]]],
) -> dict[str, dict[str, AveragePrecision]]:
    """Compute the AP of every class and difficulty.

    Args:
        images: (ground truth, detections) of each image, in the order of the files, which breaks
            ties.

    Returns:
        {class: {difficulty: AP}} of all classes and difficulties; 0 without ground truth.
    """
    table = _Table(images)
    return {
        name: {difficulty: _evaluate(table, name, difficulty) for difficulty in DIFFICULTIES}
        for name in CLASSES
    }


class _Table:
    """Objects of all images and their overlaps, as arrays.

    Attributes:
        truth_type, height, occluded, truncated: (G,), of the ground truth.
        detection_type, detection_height, score: (D,), of the detections.
        dont_care: (D,), largest share of a detection's area in one DontCare region.
        pair_truth, pair_detection, iou: (P,), of P pairs that could match, by ground truth, then
            detection.
    """

    def __init__(self, images: Iterable[tuple[Sequence[KITTIObject], Sequence[KITTIObject]]]):
        all_truth, all_detections, dont_care, pairs = [], [], [], []
        lowest = min(MIN_OVERLAP.values())
        for truth, detections in images:
            boxes, detected_boxes = _boxes(truth), _boxes(detections)
            # Pairs without intersection have IoU 0, including boxes without area.
            with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
                inter, areas, detected_areas = _intersections(boxes, detected_boxes)
                iou = np.where(inter > 0, inter / (areas[:, None] + detected_areas - inter), 0.0)
                share = np.where(inter > 0, inter / detected_areas, 0.0)
            rows, columns = np.nonzero(iou > lowest)
            pairs.append((rows + len(all_truth), columns + len(all_detections), iou[rows, columns]))
            regions = [x.type == "DontCare" for x in truth]
            dont_care.append(share[regions].max(axis=0, initial=0.0))
            all_truth.extend(truth)
            all_detections.extend(detections)
        self.truth_type = np.array([x.type for x in all_truth], dtype=object)
        self.height = np.array([x.bbox[3] - x.bbox[1] for x in all_truth])
        self.occluded = np.array([x.occluded for x in all_truth])
        self.truncated = np.array([x.truncated for x in all_truth])
        self.detection_type = np.array([x.type for x in all_detections], dtype=object)
        self.detection_height = np.array([x.bbox[3] - x.bbox[1] for x in all_detections])
        self.score = np.array([x.score for x in all_detections], dtype=np.float64)
        self.dont_care = np.concatenate([np.zeros(0), *dont_care])
        none = (np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0))
        self.pair_truth, self.pair_detection, self.iou = (
            np.concatenate(columns) for columns in zip(none, *pairs, strict=True)
        )


def _boxes(objects: Sequence[KITTIObject]) -> np.ndarray:
    return np.array([x.bbox for x in objects], dtype=np.float64).reshape(-1, 4)


def _intersections(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute the areas of the intersections (A, B) and of the boxes, (A,) and (B,)."""
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
    matchable = same | (table.truth_type == NEIGHBOR.get(name))
    # Detections below the minimum height may match regardless of their class.
    small = table.detection_height < MIN_HEIGHT[difficulty]
    active = ~small & (table.detection_type == name)
    limit = MIN_OVERLAP[name]
    matching = (
        matchable[table.pair_truth] & (small | active)[table.pair_detection] & (table.iou > limit)
    )
    candidates = _group(*(x[matching] for x in (table.pair_truth, table.pair_detection, table.iou)))

    num_valid = int(valid.sum())
    hits = _first_pass(candidates, valid, active, table.score)
    thresholds = _thresholds(hits, num_valid)
    # Index of the first threshold that does not exceed a detection's score.
    first = np.searchsorted(-thresholds, -table.score)
    counts = active & (table.dont_care <= limit)
    tp, used = _second_pass(candidates, valid, active, counts, first, len(thresholds))
    present = np.bincount(first[counts], minlength=len(thresholds) + 1).cumsum()[:-1]
    tp_and_fp = tp + present[: len(thresholds)] - used
    precision = np.zeros(NUM_POSITIONS)
    precision[: len(thresholds)] = np.divide(
        tp, tp_and_fp, out=np.zeros(len(tp)), where=tp_and_fp > 0
    )
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return AveragePrecision(tuple(precision.tolist()), num_valid)


def _group(
    truth: np.ndarray, detection: np.ndarray, iou: np.ndarray
) -> list[tuple[int, list[tuple[int, float]]]]:
    """Group pairs to [(ground truth, [(detection, IoU), ...])], in the order of the files."""
    pairs = zip(truth.tolist(), detection.tolist(), iou.tolist(), strict=True)
    return [(g, [(d, x) for _, d, x in group]) for g, group in groupby(pairs, lambda pair: pair[0])]


def _first_pass(
    candidates: list, valid: np.ndarray, active: np.ndarray, score: np.ndarray
) -> list[float]:
    """Scores of the true positives if each ground truth is matched to the highest score."""
    scores, taken, hits = score.tolist(), set(), []
    for truth, pairs in candidates:
        free = [d for d, _ in pairs if d not in taken]
        if not free:
            continue
        best = max(free, key=scores.__getitem__)  # the first one of a tie
        taken.add(best)
        if valid[truth] and active[best]:
            hits.append(scores[best])
    return hits


def _thresholds(hits: list[float], num_valid: int) -> np.ndarray:
    """Scores (K,) whose recalls are nearest to the recall positions, descending; K <= 41."""
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
    """Match at all thresholds at once: bit k of an integer represents threshold k.

    Args:
        candidates: of :func:`_group`.
        valid: (G,), bool.
        active: (D,), bool.
        counts: (D,), bool, active and outside of DontCare: a false positive if not used.
        first: (D,), index of the first threshold that does not exceed the score.
        num_thresholds: K.

    Returns:
        Numbers of true positives and of used detections that count, (K,) each.
    """
    all_thresholds = (1 << num_thresholds) - 1
    involved = {d for _, pairs in candidates for d, _ in pairs}
    free = {d: all_thresholds & ~((1 << int(first[d])) - 1) for d in involved}
    hits, used = [], []
    for truth, pairs in candidates:
        # Active detections by decreasing IoU, then small ones; ties in the order of the file.
        order = sorted(pairs, key=lambda pair: (0, -pair[1]) if active[pair[0]] else (1, 0.0))
        unmatched = all_thresholds
        for detection, _ in order:
            taken = unmatched & free[detection]
            unmatched ^= taken
            free[detection] ^= taken
            if valid[truth] and active[detection]:
                hits.append(taken)
            if counts[detection]:
                used.append(taken)
    return _count_bits(hits, num_thresholds), _count_bits(used, num_thresholds)


def _count_bits(masks: list[int], num_bits: int) -> np.ndarray:
    """Count the masks in which each bit is set: (num_bits,)."""
    bits = np.array(masks, dtype=np.int64)[:, None] >> np.arange(num_bits)
    return (bits & 1).sum(axis=0)
