"""Precision-recall curves from the detections that the last evaluation saved in inference/."""

import io
import json
import os
from contextlib import redirect_stdout
from dataclasses import dataclass

import numpy as np
from detectron2.data import MetadataCatalog
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from aid.evaluation import evaluate_folders
from aid.evaluation.kitti_metric import NUM_POSITIONS
from aid.utils.commands import train_command
from aid.utils.errors import AIDError

from .runs import Run

__all__ = ["Curve", "read_curves"]

IOUS = (0.5, 0.75)
# Maximum difference of two APs, in percent, that were computed from the same detections.
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Curve:
    """Precision-recall curve of P points.

    Attributes:
        recall: (P,), from 0 to 1.
        precision: (P,), interpolated: the maximum at this or a higher recall.
        ap: mean precision at the recall positions of the metric, in percent.
    """

    recall: np.ndarray
    precision: np.ndarray
    ap: float


def read_curves(run: Run, metric: str) -> dict[str, dict[str, Curve]]:
    """Read the curves on a run's test set.

    Args:
        run: a finished run.
        metric: "kitti" for KITTI's official metric, "bbox" for COCO's.

    Returns:
        {class: {criterion: curve}}; with COCO's metric, without classes that have no objects.
        Criteria are KITTI's difficulties, or "IoU 0.50" and "IoU 0.75".

    Raises:
        AIDError: the detections are missing, cannot be read, or do not belong to the evaluation in
            metrics.json.
    """
    curves, aps = _read_kitti(run) if metric == "kitti" else _read_coco(run)
    for key, ap in aps.items():
        reported = run.metrics_at_end(metric).get(key)
        # Runs of earlier versions have NaN where nothing was detected.
        if reported is not None and abs(ap - reported) > TOLERANCE:
            config = os.path.join(run.folder, "config.yaml")
            raise AIDError(
                f"{_inference(run)} does not belong to the last evaluation on {run.test_set} "
                f"({key} is {ap:.2f} there, {reported:.2f} in metrics.json): evaluate again with "
                f"`{train_command(config, run.cfg.MODEL.DEVICE)} --resume`"
            )
    return curves


def _inference(run: Run) -> str:
    return os.path.join(run.folder, "inference")


def _read_kitti(run: Run) -> tuple[dict, dict[str, float]]:
    labels = MetadataCatalog.get(run.test_set).kitti_labels
    results = os.path.join(_inference(run), "kitti_results", run.test_set)
    precision = evaluate_folders(labels, results)
    recall = np.linspace(0, 1, NUM_POSITIONS)
    curves = {
        name: {d: Curve(recall, np.array(x.precision), x.r40) for d, x in by_difficulty.items()}
        for name, by_difficulty in precision.items()
    }
    aps = {
        f"AP_R40-{name}-{d}": x.ap
        for name, by_difficulty in curves.items()
        for d, x in by_difficulty.items()
    }
    return curves, aps


def _read_coco(run: Run) -> tuple[dict, dict[str, float]]:
    evaluation = _evaluate_coco(run)
    recall, precision = evaluation.params.recThrs, evaluation.eval["precision"][:, :, :, 0, -1]
    names = [evaluation.cocoGt.cats[i]["name"] for i in evaluation.params.catIds]
    curves = {
        name: {
            f"IoU {iou:.2f}": Curve(recall, points, 100 * points.mean())
            for iou, points in zip(IOUS, precision[:, :, k], strict=True)
        }
        for k, name in enumerate(names)
        if precision[0, 0, k] >= 0  # -1 for a class without objects
    }
    aps = np.array([[curve.ap for curve in x.values()] for x in curves.values()])
    keys = [f"AP{100 * iou:.0f}" for iou in IOUS]
    return curves, dict(zip(keys, aps.mean(axis=0).tolist(), strict=True)) if curves else {}


def _evaluate_coco(run: Run) -> COCOeval:
    folder, dataset = _inference(run), run.test_set
    # The evaluator saves its conversion of a dataset that is not in COCO's format.
    converted = os.path.join(folder, f"{dataset}_coco_format.json")
    truth = MetadataCatalog.get(dataset).get("json_file", None) or converted
    results = os.path.join(folder, "coco_instances_results.json")
    try:
        with redirect_stdout(io.StringIO()), open(results) as f:
            coco = COCO(truth)
            detections = json.load(f)
            loaded = coco.loadRes(detections) if detections else COCO()
            evaluation = COCOeval(coco, loaded, "bbox")
            evaluation.params.iouThrs = np.array(IOUS)
            evaluation.params.areaRng = evaluation.params.areaRng[:1]  # all sizes
            evaluation.params.areaRngLbl = evaluation.params.areaRngLbl[:1]
            evaluation.evaluate()
            evaluation.accumulate()
    except OSError as error:
        raise AIDError(f"{error.filename} cannot be read: {error.strerror}") from error
    # pycocotools raises an AssertionError for images that are not in the labels.
    except (AssertionError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise AIDError(f"{results} holds no detections on {dataset} in COCO's format") from error
    return evaluation
