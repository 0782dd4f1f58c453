"""The report itself: measures what is needed, draws, and writes report.md."""

import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict
from statistics import mean, median

import torch
from detectron2.data import DatasetCatalog
from detectron2.data.detection_utils import read_image
from detectron2.structures import Instances
from tabulate import tabulate
from tqdm import tqdm

from ..errors import AIDError
from ..evaluation.kitti_files import note_on_few_objects
from ..evaluation.kitti_metric import DIFFICULTIES
from .cost import Cost, measure_cost
from .figures import draw_curves, draw_groups, draw_sheet, save
from .instances import Judged, group_of, groups_of, judge, load_sample, read_records
from .runs import Run, roles

__all__ = ["write_report"]

NUM_TIMED = 30


def write_report(
    runs: list[Run], output: str, num_images: int, num_train: int, threshold: float
) -> None:
    """Write report.md, its pictures, and the same numbers as report.json into ``output``.

    Args:
        runs: finished runs with the same test set.
        num_images: on the sheet of validation images.
        num_train: training images that the teacher judges.
        threshold: score below which a detection is not drawn.

    Raises:
        AIDError: the runs were tested on different datasets; a dataset or a teacher is missing;
            the folder cannot be written.
    """
    tested = {run.test_set for run in runs}
    if len(tested) > 1:
        raise AIDError(f"the runs were tested on different datasets, {sorted(tested)}: compare one")
    try:
        os.makedirs(output, exist_ok=True)
    except OSError as error:
        raise AIDError(f"--output {output} cannot be written: {error.strerror}") from error
    role_of = roles(runs)
    labels = [f"{run.name}\n({role})" for run, role in zip(runs, role_of, strict=True)]
    adaptive = next((run for run in runs if run.weighs_instances), None)
    val = DatasetCatalog.get(runs[0].test_set)
    shown = val[:: max(1, len(val) // num_images)][:num_images]

    costs, detections = [], []
    for run in tqdm(runs, desc="Running the detectors", unit="run"):
        cost, found = _run_detector(run, val[:NUM_TIMED], shown)
        costs.append(cost)
        detections.append(found)
    rows = [_row(*columns) for columns in zip(runs, role_of, costs, strict=True)]

    save(draw_curves(runs, labels), os.path.join(output, "curves.png"))
    judged, groups = None, {}
    if adaptive is not None:
        judged = list(_judge(adaptive, shown))
        groups = _judge_groups(adaptive, num_train)
        save(draw_groups(groups), os.path.join(output, "instances.png"))
    images = [read_image(record["file_name"], format="RGB") for record in shown]
    sheet = draw_sheet(images, detections, judged, labels, runs[0].classes, threshold)
    save(sheet, os.path.join(output, "detections.png"))

    summary = {
        name: {
            "instances": len(losses),
            "teacher_loss": median(losses),
            "weight": median(weights),
            "mean_weight": mean(weights),
        }
        for name, (losses, weights) in groups.items()
        if losses
    }
    with open(os.path.join(output, "report.json"), "w") as f:
        # JSON has no NaN, which COCO's metric is for a class without objects.
        runs_or_null = [{k: None if v != v else v for k, v in row.items()} for row in rows]
        json.dump({"runs": runs_or_null, "instances": summary}, f, indent=1)
    with open(os.path.join(output, "report.md"), "w") as f:
        f.write(_page(runs, rows, summary, adaptive))


def _run_detector(run: Run, timed: list[dict], shown: list[dict]) -> tuple[Cost, list[Instances]]:
    model = run.build()
    cost = measure_cost(model, [load_sample(run.cfg, record)[0] for record in timed])
    with torch.no_grad():
        found = [model([load_sample(run.cfg, record)[0]])[0] for record in shown]
    return cost, [x["instances"].to("cpu") for x in found]


def _row(run: Run, role: str, cost: Cost) -> dict:
    return {
        "run": run.name,
        "role": role,
        "seed": run.cfg.SEED,
        "iterations": run.cfg.SOLVER.MAX_ITER,
        **run.results,
        **asdict(cost),
        "seconds_per_iteration": run.seconds_per_iteration,
    }


def _judge(run: Run, records: list[dict]) -> Iterator[Judged]:
    return judge(run.cfg, records, run.weighting_memory, run.build())


def _judge_groups(run: Run, num_train: int) -> dict[str, tuple[list[float], list[float]]]:
    """{group: (losses, weights)} of instances in evenly chosen training images."""
    name = run.cfg.DATASETS.TRAIN[0]
    records, known = DatasetCatalog.get(name), read_records(name)
    chosen = records[:: max(1, len(records) // num_train)][:num_train]
    groups = {group: ([], []) for group in groups_of(run.classes)}
    seen = tqdm(_judge(run, chosen), total=len(chosen), desc="Asking the teacher", unit="image")
    for record, judged in zip(chosen, seen, strict=True):
        image = os.path.splitext(os.path.basename(record["file_name"]))[0]
        entries = known[image]["objects"] if known else None
        for i, annotation in enumerate(judged.annotations):
            about = entries[annotation["label_index"]] if entries else None
            x1, y1, x2, y2 = judged.boxes[i].tolist()
            group = group_of(annotation, ((x2 - x1) * (y2 - y1)) ** 0.5, about, run.classes)
            groups[group][0].append(judged.losses[i].item())
            groups[group][1].append(judged.weights[i].item())
    return groups


def _page(runs: list[Run], rows: list[dict], summary: dict, adaptive: Run | None) -> str:
    device = runs[0].cfg.MODEL.DEVICE
    if device == "cpu":
        device = f"CPU, {torch.get_num_threads()} threads"
    classes = runs[0].classes
    measures = ["AP", "AP50", *classes]
    if any("mask AP" in row for row in rows):
        measures.insert(1, "mask AP")
    header = ["run", "role", "iterations", *measures]
    header += ["parameters", "GFLOPs", "s / image", "s / iteration"]
    table = [
        [
            row["run"], row["role"], str(row["iterations"]),
            *(f"{row.get(key, math.nan):.1f}" for key in measures),
            f"{row['parameters']:.2f} M", f"{row['gflops']:.2f}",
            f"{row['seconds']:.3f}", f"{row['seconds_per_iteration']:.3f}",
        ]
        for row in rows
    ]  # fmt: skip
    seeds = ", ".join(sorted({str(row["seed"]) for row in rows}))
    parts = [
        f"# {runs[0].test_set}: {len(runs)} runs compared",
        _markdown(header, table),
        f"AP, AP50 and the AP of each class in percent, COCO's metric, on "
        f"{runs[0].test_set}. GFLOPs: multiply-adds of one image. s / image: median "
        f"over {NUM_TIMED} images at most, one at a time; {device}.",
        f"Every row is one run with one seed ({seeds}). One seed of a short run proves nothing: "
        "repeat with other seeds before you believe a difference of a few AP.",
        *_kitti_section(runs),
        "## Training\n\n![training curves](curves.png)",
        "## Detections\n\n![detections of every run on validation images](detections.png)",
    ]
    if adaptive is not None:
        rows = [
            [name, str(x["instances"]), f"{x['teacher_loss']:.2f}", f"{x['weight']:.2f}"]
            for name, x in summary.items()
        ]
        parts += [
            "## What the teacher makes of the training labels",
            f"For `{adaptive.name}`: median of the teacher's loss D and of the weight w on "
            f"instances of {adaptive.cfg.DATASETS.TRAIN[0]}, by what is known about them. An "
            "instance is in the first group that fits: its label was given the wrong class, or a "
            "jittered box; most of it is hidden; it is tiny at the net's input; else its class.",
            _markdown(["group", "instances", "teacher's loss D", "weight w"], rows),
            "![teacher's loss and weight by group](instances.png)",
        ]
    return "\n\n".join(parts) + "\n"


def _kitti_section(runs: list[Run]) -> list[str]:
    """KITTI's official metric, where the runs were tested by it."""
    found = [run.metrics_at_end("kitti") for run in runs]
    if not all(found):
        return []
    header = ["run", *(f"{name} {d}" for name in runs[0].classes for d in DIFFICULTIES)]
    keys = [f"{name}-{d}" for name in runs[0].classes for d in DIFFICULTIES]
    table = [
        [run.name, *(f"{x[f'AP_R40-{key}']:.1f}" for key in keys)]
        for run, x in zip(runs, found, strict=True)
    ]
    text = "AP at 40 recall positions, in percent, on the objects that count at each difficulty."
    note = note_on_few_objects({key: int(found[0][f"objects-{key}"]) for key in keys})
    return ["## KITTI's official metric", f"{text} {note}".rstrip(), _markdown(header, table)]


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    return tabulate(rows, header, tablefmt="github", disable_numparse=True)
