"""Results of finished runs, and paired differences between them."""

import contextlib
import io
import json
import math
import os
import shutil
from statistics import mean, median, stdev

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from aid.utils.files import write_json

from .grid import Job

__all__ = ["RESULTS", "PairedDifference", "collect_results", "paired_difference", "read_results"]

RESULTS = "results.json"
# 97.5 % quantiles of Student's t-distribution for 1, 2, ... degrees of freedom.
T_QUANTILES = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
)  # fmt: skip


def collect_results(job: Job) -> None:
    """Write results.json of a finished run, and remove its large files that are not needed."""
    with open(os.path.join(job.folder, "metrics.json")) as f:
        lines = [json.loads(line) for line in f]
    last = next(x for x in reversed(lines) if "bbox/AP" in x)
    results = {key.removeprefix("bbox/"): last[key] for key in last if key.startswith("bbox/")}
    results = {key: None if math.isnan(value) else value for key, value in results.items()}
    results["conditions"] = _by_condition(job)
    for name, key in (("map_mean", "aid/map_mean"), ("weight_mean", "aid/weight_mean")):
        values = [x[key] for x in lines if key in x]
        results[name] = mean(values) if values else None
    results["seconds_per_iteration"] = median(x["time"] for x in lines if "time" in x)
    results["labels"] = job.labels
    write_json(os.path.join(job.folder, RESULTS), results)
    shutil.rmtree(os.path.join(job.folder, "inference"), ignore_errors=True)
    for name in os.listdir(job.folder):
        keep = (job.is_teacher or job.keeps_weights) and name == "model_final.pth"
        if name.endswith(".pth") and not keep or name.startswith("events."):
            os.remove(os.path.join(job.folder, name))


def _by_condition(job: Job) -> dict[str, float]:
    """AP and AP50, in percent, on the validation images of each condition, if there are several."""
    root = os.path.join(job.scenes.folder, "synthetic_kitti")
    with open(os.path.join(root, "training", "scenes.json")) as f:
        scenes = json.load(f)["scenes"]
    with open(os.path.join(root, "ImageSets", "val.txt")) as f:
        condition = [scenes[name.strip()]["condition"] for name in f]  # in order of image ids
    names = sorted(set(condition))
    if len(names) < 2:
        return {}
    folder = os.path.join(job.folder, "inference")
    results = {}
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(os.path.join(folder, "synthetic_kitti_val_coco_format.json"))
        detections = truth.loadRes(os.path.join(folder, "coco_instances_results.json"))
        for name in names:
            evaluation = COCOeval(truth, detections, "bbox")
            evaluation.params.imgIds = [i for i, x in enumerate(condition) if x == name]
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            results[name] = {"AP": 100 * evaluation.stats[0], "AP50": 100 * evaluation.stats[1]}
    return results


def read_results(jobs: list[Job]) -> list[dict]:
    """Read the results of all finished jobs, including teachers, with the labels of the jobs."""
    results = []
    for job in jobs:
        path = os.path.join(job.folder, RESULTS)
        if os.path.isfile(path):
            with open(path) as f:
                results.append({**json.load(f), "labels": job.labels})
    return results


class PairedDifference:
    """Mean of paired differences, with its 95 % confidence interval by Student's t-distribution.

    Attributes:
        seeds: number of pairs.
        mean: mean of the differences.
        interval: (low, high); infinite for a single pair.
    """

    def __init__(self, differences: list[float]):
        self.seeds = len(differences)
        self.mean = mean(differences)
        half = math.inf
        if self.seeds > 1:
            t = T_QUANTILES[min(self.seeds - 1, len(T_QUANTILES)) - 1]
            half = t * stdev(differences) / math.sqrt(self.seeds)
        self.interval = (self.mean - half, self.mean + half)


def paired_difference(
    values: dict[int, float], baseline: dict[int, float]
) -> PairedDifference | None:
    """Difference between two sets of runs over their common seeds; None without common seeds.

    Args:
        values: {seed: metric}.
        baseline: {seed: metric}, subtracted.
    """
    seeds = sorted(values.keys() & baseline.keys())
    return PairedDifference([values[s] - baseline[s] for s in seeds]) if seeds else None
