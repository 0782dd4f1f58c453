"""Results of finished runs."""

import contextlib
import io
import json
import os
import shutil
from statistics import mean, median

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from aid.utils.errors import AIDError

from ..files import write_json
from .grid import Job

__all__ = ["RESULTS", "collect_results", "read_object", "read_results"]

RESULTS = "results.json"


def collect_results(job: Job) -> None:
    """Write results.json of a finished run, and remove its large files that are not needed.

    The detections on a given dataset are kept, for statistics over its drives.

    Raises:
        AIDError: the run was not evaluated.
    """
    with open(os.path.join(job.folder, "metrics.json")) as f:
        lines = [json.loads(line) for line in f]
    last = next((x for x in reversed(lines) if "bbox/AP" in x), None)
    if last is None:
        raise AIDError("metrics.json has no AP: name a dataset in DATASETS.TEST of its config")
    results = {key.removeprefix("bbox/"): last[key] for key in last if key.startswith("bbox/")}
    for key in last:
        if key.startswith("kitti/AP_R40") and key.endswith("moderate"):
            results[key.removeprefix("kitti/")] = last[key]
    results["conditions"] = _by_condition(job) if job.scenes.is_rendered else {}
    for name, key in (("map_mean", "aid/map_mean"), ("weight_mean", "aid/weight_mean")):
        values = [x[key] for x in lines if key in x]
        results[name] = mean(values) if values else None
    times = [x["time"] for x in lines if "time" in x]
    results["seconds_per_iteration"] = median(times) if times else None
    results["minutes"] = median(times) * (last["iteration"] + 1) / 60 if times else None
    results["labels"] = job.labels
    write_json(os.path.join(job.folder, RESULTS), results)
    if job.scenes.is_rendered:
        shutil.rmtree(os.path.join(job.folder, "inference"), ignore_errors=True)
    for name in os.listdir(job.folder):
        keep = (job.is_teacher or job.keeps_weights) and name == "model_final.pth"
        if name.endswith(".pth") and not keep or name.startswith("events."):
            os.remove(os.path.join(job.folder, name))


def _by_condition(job: Job) -> dict[str, float]:
    """AP and AP50, in percent, on the validation images of each condition, if there are several."""
    root = job.scenes.root
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


def read_object(path: str) -> dict:
    """Read a JSON file of a run.

    Raises:
        AIDError: it is damaged.
    """
    try:
        with open(path) as f:
            content = json.load(f)
    except (OSError, ValueError, RecursionError) as error:
        raise AIDError(f"{path} cannot be read ({error}): remove its folder") from error
    if not isinstance(content, dict):
        raise AIDError(f"{path} is not of a run: remove its folder")
    return content


def read_results(jobs: list[Job]) -> list[dict]:
    """Read the results of all finished jobs, including teachers, with the labels of the jobs."""
    results = []
    for job in jobs:
        path = os.path.join(job.folder, RESULTS)
        if os.path.isfile(path):
            results.append({**read_object(path), "labels": job.labels})
    return results
