#!/usr/bin/env python3
"""AP of Car over the frames of all folds, with bootstrap intervals over drives.

    python studies/real_frames/bootstrap.py output/real_frames frames.csv RULE BASELINE

The detections of a seed's runs, one for each fold, are evaluated together. A resample draws drives
with replacement and averages over the seeds.
"""

import contextlib
import csv
import glob
import io
import json
import os
import sys

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from aid.data.kitti_labels import parse_label_file
from aid.evaluation.kitti_metric import kitti_average_precision

NUM_RESAMPLES = 1000


class PooledEvaluation:
    """Evaluation of one seed over all folds."""

    def __init__(self, runs: list[str], drive_of: dict[str, str]):
        self.drives: list[str] = []
        self._per_image: list[dict | None] = []
        self._kitti = []
        for run in runs:
            with contextlib.redirect_stdout(io.StringIO()):
                truth = COCO(glob.glob(f"{run}/inference/*_coco_format.json")[0])
                detections = truth.loadRes(f"{run}/inference/coco_instances_results.json")
                evaluation = COCOeval(truth, detections, "bbox")
                car = truth.getCatIds(catNms=["Car"])
                evaluation.params.catIds, evaluation.params.areaRng = car, [[0, 1e10]]
                evaluation.params.areaRngLbl = ["all"]
                evaluation.evaluate()
            self._per_image += evaluation.evalImgs
            files = [truth.imgs[i]["file_name"] for i in evaluation.params.imgIds]
            names = [os.path.splitext(os.path.basename(x))[0] for x in files]
            self.drives += [drive_of[x] for x in names]
            self._evaluation = evaluation
            (results,) = glob.glob(f"{run}/inference/kitti_results/*")
            for file, name in zip(files, names, strict=True):
                labels = os.path.join(os.path.dirname(file), "..", "label_2", f"{name}.txt")
                found = parse_label_file(os.path.join(results, f"{name}.txt"), with_score=True)
                self._kitti.append((parse_label_file(labels), found))

    def ap(self, images: list[int] | None = None) -> float:
        """COCO's AP of Car in percent, on the given images, which may repeat."""
        chosen = range(len(self._per_image)) if images is None else images
        evaluation = self._evaluation
        evaluation.evalImgs = [self._per_image[i] for i in chosen]
        evaluation.params.imgIds = list(range(len(evaluation.evalImgs)))
        evaluation._paramsEval = evaluation.params
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation.accumulate()
        precision = evaluation.eval["precision"][:, :, 0, 0, -1]
        return 100 * float(precision[precision > -1].mean())

    def kitti_ap(self) -> float:
        """KITTI's AP of Car, moderate, over 40 recalls, in percent."""
        return kitti_average_precision(self._kitti)["Car"]["moderate"].r40


def runs_of(root: str, rule: str) -> dict[str, list[str]]:
    """{seed: runs of a rule, one for each fold}."""
    runs: dict[str, list[str]] = {}
    for path in sorted(glob.glob(f"{root}/runs/*/*/*/*/*/*/results.json")):
        with open(path) as f:
            labels = json.load(f)["labels"]
        if labels["rule"] == rule:
            runs.setdefault(f"seed_{labels['seed']}", []).append(os.path.dirname(path))
    return runs


def main(root: str, frames: str, rule: str, baseline: str) -> None:
    with open(frames) as f:
        drive_of = {row["name"]: row["drive"] for row in csv.DictReader(f)}
    of_rule, of_baseline = runs_of(root, rule), runs_of(root, baseline)
    seeds = sorted(of_rule.keys() & of_baseline.keys())
    pairs = [
        tuple(PooledEvaluation(x[seed], drive_of) for x in (of_rule, of_baseline)) for seed in seeds
    ]
    for name, number in ((rule, 0), (baseline, 1)):
        values = [pair[number] for pair in pairs]
        aps = ", ".join(f"{x.ap():.1f}" for x in values)
        print(f"{name}: AP {aps}; KITTI {', '.join(f'{x.kitti_ap():.1f}' for x in values)}")
    drives = pairs[0][0].drives
    images = {drive: [i for i, x in enumerate(drives) if x == drive] for drive in set(drives)}
    generator, names = np.random.default_rng(0), sorted(images)
    differences = []
    for _ in range(NUM_RESAMPLES):
        drawn = [i for d in generator.choice(names, len(names)) for i in images[d]]
        differences.append(np.mean([a.ap(drawn) - b.ap(drawn) for a, b in pairs]))
    mean = np.mean([a.ap() - b.ap() for a, b in pairs])
    low, high = np.percentile(differences, [2.5, 97.5])
    result = {"rule": rule, "baseline": baseline, "seeds": len(pairs), "difference": float(mean)}
    print(json.dumps({**result, "interval": [float(low), float(high)]}))


if __name__ == "__main__":
    main(*sys.argv[1:])
