#!/usr/bin/env python3
"""Signals that tell right from wrong detections of a teacher, without labels.

    python studies/pseudo_labels.py SCENES TEACHER OTHER

SCENES is a folder in KITTI's layout, TEACHER and OTHER are output folders of runs. Signals of a
detection of TEACHER: its score; the mean of its score and that of the matching detection on the
mirrored image, or of OTHER on the same image, 0 if there is none. Detections match if they have
the same class and an IoU above 0.5. For each signal: the area under the ROC curve (AUC) of right
against wrong detections with scores of 0.5 or more, and the AP50 of all detections ranked by it.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from detectron2.data.detection_utils import read_image
from detectron2.structures import Instances
from torch import Tensor
from torchvision.ops import box_iou

import aid
from aid.data.kitti_labels import CLASSES, parse_label_file

NUM_IMAGES = 400
MIN_IOU = 0.5
MIN_SCORE = 0.5  # default of UNLABELED.SCORE_THRESH


def mirrored(detections: Instances) -> Instances:
    """Detections of a mirrored image, in pixels of the image; changed in place."""
    boxes = detections.pred_boxes.tensor
    boxes[:, [0, 2]] = detections.image_size[1] - boxes[:, [2, 0]]
    return detections


def overlaps(detections: Instances, boxes: Tensor, classes: Tensor) -> Tensor:
    """(N, M) IoU of N detections with M boxes, 0 where the classes differ."""
    same = detections.pred_classes[:, None] == classes[None]
    return box_iou(detections.pred_boxes.tensor, boxes) * same


def matching_scores(detections: Instances, others: Instances) -> Tensor:
    """(N,) score of the detection among ``others`` that matches each of N detections, or 0."""
    if not len(others):
        return torch.zeros(len(detections))
    iou, index = overlaps(detections, others.pred_boxes.tensor, others.pred_classes).max(1)
    return torch.where(iou > MIN_IOU, others.scores[index], 0.0)


def are_right(detections: Instances, boxes: Tensor, classes: Tensor) -> list[bool]:
    """Whether each detection, by decreasing score, finds a labeled object that is still free."""
    iou, free = overlaps(detections, boxes, classes), torch.ones(len(boxes), dtype=torch.bool)
    right = [False] * len(detections)
    for k in detections.scores.argsort(descending=True).tolist():
        best = (iou[k] * free).argmax() if len(boxes) else None
        if best is not None and iou[k, best] * free[best] > MIN_IOU:
            right[k], free[best] = True, False
    return right


def area_under_roc(signal: np.ndarray, right: np.ndarray) -> float:
    """Probability that a right detection has a larger signal than a wrong one; ties count half."""
    values, counts = np.unique(signal, return_counts=True)
    ranks = (counts.cumsum() - (counts - 1) / 2)[np.searchsorted(values, signal)]
    num_right = right.sum()
    excess = ranks[right].sum() - num_right * (num_right + 1) / 2
    return excess / (num_right * (len(right) - num_right))


def average_precision(signal: np.ndarray, right: np.ndarray, num_objects: int) -> float:
    """AP in percent of one class, over 101 recalls."""
    hits = right[np.argsort(-signal, kind="stable")].cumsum()
    precision = hits / np.arange(1, len(hits) + 1)
    precision = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0)
    return 100 * precision[np.searchsorted(hits / num_objects, np.linspace(0, 1, 101))].mean()


def main(scenes: str, teacher: str, other: str) -> None:
    """Print the table of signals."""
    predict, predict_other = (aid.Predictor(x, device="cpu") for x in (teacher, other))
    folder = Path(scenes, "training")
    rows, num_objects = [], np.zeros(len(CLASSES))
    for path in sorted((folder / "image_2").glob("*.png"))[:NUM_IMAGES]:
        image = read_image(str(path), "BGR")
        found = predict(image)
        labels = parse_label_file(str(folder / "label_2" / f"{path.stem}.txt"))
        labels = [x for x in labels if x.type in CLASSES]
        boxes = torch.tensor([x.bbox for x in labels]).reshape(-1, 4)
        classes = torch.tensor([CLASSES.index(x.type) for x in labels])
        np.add.at(num_objects, classes.long().numpy(), 1)
        mirror = mirrored(predict(np.ascontiguousarray(image[:, ::-1])))
        pairs = (matching_scores(found, x) for x in (mirror, predict_other(image)))
        rows += zip(
            *(x.tolist() for x in (found.scores, *pairs, found.pred_classes)),
            are_right(found, boxes, classes),
            strict=True,
        )
    score, mirror, other_score, class_of, right = np.array(rows).T
    right, kept = right.astype(bool), score >= MIN_SCORE
    print(f"{kept.sum()} detections from {MIN_SCORE} on, right: {right[kept].mean():.2f}")
    signals = {"score": score, "mirror": (score + mirror) / 2, "other": (score + other_score) / 2}
    for name, signal in signals.items():
        aps = [
            average_precision(signal[class_of == k], right[class_of == k], num)
            for k, num in enumerate(num_objects)
        ]
        auc = area_under_roc(signal[kept], right[kept])
        print(f"{name}: AUC {auc:.3f}, AP50 {np.mean(aps):.1f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
