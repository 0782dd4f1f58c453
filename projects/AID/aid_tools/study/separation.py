"""Do the weights fall where the teacher is known to be wrong?"""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng

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
    """A labelled instance, its weight, and what the renderer knows of it.

    Attributes:
        weight: w.
        visible: share of the silhouette.
        side: root of the box's area, in pixels of the network's input.
        flags: those of FLAGS that hold.
    """

    weight: float
    visible: float
    side: float
    flags: frozenset[str]


def jobs_to_measure(jobs: list[Job]) -> list[Job]:
    """The finished runs to measure: strengths of one rule share their weights' order."""
    found = {}
    for job in jobs:
        if job.weighs_instances and is_done(job):
            key = tuple(value for name, value in job.labels.items() if name != "strength")
            found.setdefault(key, job)
    return list(found.values())


def measure_weights(job: Job, num_images: int) -> list[dict]:
    """Weights on training images of a finished run, against what makes a teacher wrong there.

    They are kept in the run's folder and read from there the next time.

    Args:
        job: a run with a teacher and with weights by instance.
        num_images: of the training set, evenly chosen.

    Returns:
        An entry for the end of training and, if the rule looks at the student, one for the start:
        labels of the run; "at" start or end; "auc" by flag, of which 0.5 tells nothing, None where
        there is no such instance or no other; "correlation" of the weights with the visible share
        and with the size; "mean" weight and "instances".

    Raises:
        AIDError: the teacher's or the student's checkpoint is missing.
    """
    return kept(job, WEIGHTS, lambda: _measure(job, num_images))


def _measure(job: Job, num_images: int) -> list[dict]:
    cfg = config_of(job)
    final_weights(job)  # an error now if they are gone
    with training_set(job) as name:
        records = DatasetCatalog.get(name)
        records = records[:: max(1, len(records) // num_images)][:num_images]
        scenes = read_records(name)
        run = Run(job.folder, cfg, [])
        students = {"end": (run.build(), run.weighting_memory)}
        if build_weighting(cfg).requires_student:
            seed_all_rng(cfg.SEED)
            students["start"] = (build_model(cfg).eval(), None)
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


def _known(scenes: dict, records: list[dict], judged: Iterator[ImageStats]) -> Iterator[Known]:
    for record, seen in zip(records, judged, strict=True):
        scene = scenes[os.path.splitext(os.path.basename(record["file_name"]))[0]]
        sides = (seen.boxes[:, 2:] - seen.boxes[:, :2]).prod(dim=1).sqrt().tolist()
        values = (seen.weights.tolist(), sides, seen.annotations)
        for weight, side, annotation in zip(*values, strict=True):
            about = scene["objects"][annotation["label_index"]]
            flags = {
                "spoiled class": about["spoiled"] == "class",
                "spoiled box": about["spoiled"] == "jitter",
                "night": scene["condition"] == "night",
                "Cyclist": about["type"] == "Cyclist",
                "mostly hidden": about["visible"] < HIDDEN_VISIBLE,
                "tiny": side < TINY_SIDE,
            }
            present = frozenset(name for name, holds in flags.items() if holds)
            yield Known(weight, about["visible"], side, present)


def auc(weights: np.ndarray, wrong: np.ndarray) -> float | None:
    """The chance that an instance of the wrong ones weighs less than one of the others.

    Args:
        weights: (G,).
        wrong: (G,), bool.

    Returns:
        0.5 for weights that tell nothing, 1 for perfect ones; None if one of the two is empty.
    """
    low, high = weights[wrong], weights[~wrong]
    if not len(low) or not len(high):
        return None
    ranks = _ranks(np.concatenate([low, high]))
    # Mann and Whitney's U of the others, over the number of pairs.
    u = ranks[len(low) :].sum() - len(high) * (len(high) - 1) / 2
    return float(u / (len(low) * len(high)))


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation of two arrays (G,)."""
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0; equals share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum() - 1
    return (last - (counts - 1) / 2)[inverse]
