"""Separation of wrong from correct teacher predictions by the imitation weights."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from detectron2.data import DatasetCatalog
from detectron2.utils.env import seed_all_rng

from aid.modeling.build import build_detector
from aid.modeling.weighting import build_weighting

from ..report.instances import HIDDEN_VISIBLE, TINY_SIDE, ImageStats, image_stats, read_records
from ..report.runs import Run
from .grid import Job
from .measured import config_of, final_weights, kept, training_set
from .runner import is_done

__all__ = ["auc", "jobs_to_measure", "measure_weights", "rank_correlation"]

WEIGHTS = "weights.json"
FLAGS = ("spoiled class", "spoiled box", "night", "Cyclist", "mostly hidden", "tiny")


@dataclass(frozen=True)
class Known:
    """Labeled instance with its weight and the renderer's ground truth.

    Attributes:
        weight: imitation weight w.
        visible: visible fraction of the silhouette.
        side: square root of the box area, in pixels of the network's input.
        flags: the FLAGS that apply.
    """

    weight: float
    visible: float
    side: float
    flags: frozenset[str]


def jobs_to_measure(jobs: list[Job]) -> list[Job]:
    """Finished runs to measure: one strength per rule, as strengths do not change the ranking."""
    chosen = {}
    for job in jobs:
        if job.weighs_instances and is_done(job):
            key = tuple(value for name, value in job.labels.items() if name != "strength")
            chosen.setdefault(key, job)
    return list(chosen.values())


def measure_weights(job: Job, num_images: int) -> list[dict]:
    """Relate the weights on training images of a finished run to known causes of teacher errors.

    The result is saved in the run's folder, and read from there by later calls.

    Args:
        job: a run with a teacher and with weights per instance.
        num_images: number of training images, evenly spaced.

    Returns:
        An entry for the end of training and, if the rule uses the student, one for the start:
        "labels" of the run; "at", start or end; "auc" by flag (0.5 is chance level; None if all or
        no instances have the flag); "correlation" of the weights with the visible fraction and with
        the size; "mean" weight and number of "instances".

    Raises:
        AIDError: the teacher's or the student's checkpoint is missing.
    """
    return kept(job, WEIGHTS, lambda: _measure(job, num_images))


def _measure(job: Job, num_images: int) -> list[dict]:
    cfg = config_of(job)
    final_weights(job)  # fail early if they do not exist
    with training_set(job) as name:
        records = DatasetCatalog.get(name)
        records = records[:: max(1, len(records) // num_images)][:num_images]
        scenes = read_records(name)
        run = Run(job.folder, cfg, [])
        students = {"end": (run.build(), run.weighting_memory)}
        if build_weighting(cfg).requires_student:
            seed_all_rng(cfg.SEED)
            students["start"] = (build_detector(cfg).eval(), None)
        return [
            {
                "labels": job.labels,
                "at": at,
                **_summary(
                    list(_known(scenes, records, image_stats(cfg, records, memory, student)))
                ),
            }
            for at, (student, memory) in students.items()
        ]


def _summary(known: list[Known]) -> dict:
    weights = np.array([x.weight for x in known])
    flags = {flag: np.array([flag in x.flags for x in known]) for flag in FLAGS}
    return {
        "instances": len(known),
        "mean": float(weights.mean()),
        "auc": {flag: auc(weights, wrong) for flag, wrong in flags.items()},
        "correlation": {
            "visible": rank_correlation(weights, np.array([x.visible for x in known])),
            "size": rank_correlation(weights, np.array([x.side for x in known])),
        },
    }


def _known(scenes: dict, records: list[dict], stats: Iterator[ImageStats]) -> Iterator[Known]:
    for record, x in zip(records, stats, strict=True):
        scene = scenes[os.path.splitext(os.path.basename(record["file_name"]))[0]]
        sides = (x.boxes[:, 2:] - x.boxes[:, :2]).prod(dim=1).sqrt().tolist()
        values = (x.weights.tolist(), sides, x.annotations)
        for weight, side, annotation in zip(*values, strict=True):
            entry = scene["objects"][annotation["label_index"]]
            flags = {
                "spoiled class": entry["spoiled"] == "class",
                "spoiled box": entry["spoiled"] == "jitter",
                "night": scene["condition"] == "night",
                "Cyclist": entry["type"] == "Cyclist",
                "mostly hidden": entry["visible"] < HIDDEN_VISIBLE,
                "tiny": side < TINY_SIDE,
            }
            present = frozenset(name for name, holds in flags.items() if holds)
            yield Known(weight, entry["visible"], side, present)


def auc(weights: np.ndarray, wrong: np.ndarray) -> float | None:
    """Probability that a wrong instance has a smaller weight than a correct one (area under ROC).

    Args:
        weights: (G,).
        wrong: (G,), bool.

    Returns:
        0.5 at chance level, 1 for perfect separation; None if all or no instances are wrong.
    """
    low, high = weights[wrong], weights[~wrong]
    if not len(low) or not len(high):
        return None
    ranks = _ranks(np.concatenate([low, high]))
    # Mann-Whitney U of the correct instances, divided by the number of pairs.
    u = ranks[len(low) :].sum() - len(high) * (len(high) - 1) / 2
    return float(u / (len(low) * len(high)))


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation of two arrays (G,)."""
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0; ties get their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum() - 1
    return (last - (counts - 1) / 2)[inverse]
