"""Writing of a report: measurements, figures and texts."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import mean, median

import numpy as np
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import Instances
from torch import nn
from tqdm import tqdm

from aid.data.ignore_regions import region_boxes
from aid.data.images import clear_image_errors, read_image
from aid.utils.errors import AIDError
from aid.utils.files import json_text, write_text

from ..cost import Cost, measure_costs
from ..files import output_folder
from ..visualization.sample import load_sample
from .content import NUM_TIMED, Findings, describe, official_metric
from .figures import draw_curves, draw_groups, draw_precision_recall, draw_sheet, save
from .html import to_html
from .instances import ImageStats, group_of, groups_of, image_stats, read_records
from .markdown import to_markdown
from .outcome import doubt_about_labels, outcome, plain_student
from .precision_recall import Curve, read_curves
from .runs import Run, roles
from .suspicious import SuspectPictures, label_rows, write_suspicious_labels

__all__ = ["write_report"]

# Files that not every report has.
OPTIONAL = (
    *("precision_recall.png", "instances.png"),
    *("suspicious_labels.csv", "suspicious_labels.png"),
)


def write_report(
    runs: list[Run],
    output: str,
    num_images: int,
    num_train: int,
    threshold: float,
    missing: Iterable[str] = (),
) -> None:
    """Write report.html, report.md with its figures, and report.json with their numbers.

    If a run weighs instances, suspicious_labels.csv lists the labels with the largest D, and the
    report shows the first of them.

    The report lists the sections that it lacks because a file of a run or of its teacher is
    missing.

    Args:
        runs: finished runs with the same test set.
        output: output folder.
        num_images: number of validation images in the figure of detections.
        num_train: number of training images for the statistics of the teacher's losses.
        threshold: minimum score of the detections to draw.
        missing: further lines on what the report lacks.

    Raises:
        AIDError: the runs were tested on different datasets; a dataset is missing; weights do not
            fit their config; the folder cannot be written.
    """
    tested = {run.test_set for run in runs}
    if len(tested) > 1:
        raise AIDError(
            f"the runs were tested on different datasets, {sorted(tested)}: choose runs with the "
            "same test set"
        )
    with output_folder(output):
        _write(runs, output, num_images, num_train, threshold, list(missing))


def _write(
    runs: list[Run],
    output: str,
    num_images: int,
    num_train: int,
    threshold: float,
    missing: list[str],
) -> None:
    role_of = roles(runs)
    labels = [f"{run.name}\n({role})" for run, role in zip(runs, role_of, strict=True)]
    adaptive = next((run for run in runs if run.weighs_instances), None)
    val = DatasetCatalog.get(runs[0].test_set)
    shown = val[:: max(1, len(val) // num_images)][:num_images]

    detectors = [run.build() for run in runs]
    timed = [[load_sample(run.cfg, x)[0] for x in val[:NUM_TIMED]] for run in runs]
    costs = measure_costs(detectors, timed)
    detections = [
        _detections(run, detector, shown)
        for run, detector in zip(tqdm(runs, desc="Detecting", unit="run"), detectors, strict=True)
    ]
    rows = [_row(*columns) for columns in zip(runs, role_of, costs, strict=True)]

    for name in OPTIONAL:  # of an earlier report
        Path(output, name).unlink(missing_ok=True)
    save(draw_curves(runs, labels), os.path.join(output, "curves.png"))
    curves = _read_all_curves(runs, missing)
    if any(curves):
        figure = draw_precision_recall(curves, labels)
        save(figure, os.path.join(output, "precision_recall.png"))
    stats, groups = None, {}
    if adaptive is not None:
        try:
            stats = list(_stats_of(adaptive, shown))
            groups, labels_of_train, pictures = _stats_of_train(adaptive, num_train)
        except AIDError as error:
            missing.append(f"Teacher's loss on the labels, for {adaptive.name}: {error}.")
    if groups:
        save(draw_groups(groups), os.path.join(output, "instances.png"))
        write_suspicious_labels(labels_of_train, os.path.join(output, "suspicious_labels.csv"))
        if pictures.suspects:
            pictures.draw().save(os.path.join(output, "suspicious_labels.png"))
    images = [_read_rgb(record["file_name"]) for record in shown]
    regions = [region_boxes(record.get("annotations", [])) for record in shown]
    sheet = draw_sheet(images, regions, detections, stats, labels, runs[0].classes, threshold)
    save(sheet, os.path.join(output, "detections.png"))

    findings = Findings(
        runs,
        rows,
        outcome(runs, costs),
        missing,
        curves,
        _summarize(groups),
        adaptive,
        plain_student(runs, costs),
        doubt_about_labels(runs, costs, adaptive) if adaptive is not None else "",
        any(map(len, regions)),
    )
    _write_texts(findings, output)


def _read_rgb(file_name: str) -> np.ndarray:
    with clear_image_errors(file_name):
        return read_image(file_name, "RGB")


def _summarize(groups: dict[str, tuple[list[float], list[float]]]) -> dict[str, dict[str, float]]:
    """Statistics of the losses and weights of each group with instances."""
    return {
        name: {
            "instances": len(losses),
            "teacher_loss": median(losses),
            "weight": median(weights),
            "mean_weight": mean(weights),
        }
        for name, (losses, weights) in groups.items()
        if losses
    }


def _write_texts(findings: Findings, output: str) -> None:
    """Write report.json, report.md and report.html next to their figures."""
    content = {"outcome": findings.outcome, "runs": findings.rows, "instances": findings.summary}
    write_text(os.path.join(output, "report.json"), json_text(content, indent=1))
    several = f"{len(findings.runs)} runs compared" if len(findings.runs) > 1 else "1 run"
    title = f"{findings.runs[0].test_set}: {several}"
    parts = describe(findings)
    texts = {"report.md": to_markdown(title, parts), "report.html": to_html(title, parts, output)}
    for name, text in texts.items():
        write_text(os.path.join(output, name), text)


def _read_all_curves(runs: list[Run], missing: list[str]) -> list[dict[str, dict[str, Curve]]]:
    """Curves of each run; empty, with a line added to ``missing``, where they cannot be read."""
    curves = []
    for run in runs:
        try:
            curves.append(read_curves(run, official_metric(runs)))
        except AIDError as error:
            curves.append({})
            missing.append(f"Precision over recall of {run.name}: {error}.")
    return curves


@torch.no_grad()
def _detections(run: Run, detector: nn.Module, shown: list[dict]) -> list[Instances]:
    outputs = [detector([load_sample(run.cfg, record)[0]])[0] for record in shown]
    return [x["instances"].to("cpu") for x in outputs]


def _row(run: Run, role: str, cost: Cost) -> dict:
    return {
        "run": run.name,
        "role": role,
        "seed": run.cfg.SEED,
        "iterations": run.cfg.SOLVER.MAX_ITER,
        **run.results,
        # Apart from the other keys, so that a class may have any name.
        "classes": run.class_results,
        **asdict(cost),
        "seconds_per_iteration": run.seconds_per_iteration,
        "training_seconds": run.training_seconds,
    }


def _stats_of(run: Run, records: list[dict]) -> Iterator[ImageStats]:
    return image_stats(run.cfg, records, run.weighting_memory, run.build())


def _stats_of_train(
    run: Run, num_train: int
) -> tuple[dict[str, tuple[list[float], list[float]]], list[tuple], SuspectPictures]:
    """Statistics of the instances in evenly spaced training images.

    Returns:
        {group: (losses, weights)}, the rows of :func:`label_rows`, and pictures of a few.
    """
    name = run.cfg.DATASETS.TRAIN[0]
    records, known = DatasetCatalog.get(name), read_records(name)
    chosen = records[:: max(1, len(records) // num_train)][:num_train]
    groups, rows = {group: ([], []) for group in groups_of(run.classes)}, []
    pictures = SuspectPictures()
    stats = _stats_of(run, chosen)
    bar = tqdm(stats, total=len(chosen), desc="Teacher's losses", unit="image")
    for record, x in zip(chosen, bar, strict=True):
        image = os.path.splitext(os.path.basename(record["file_name"]))[0]
        entries = known[image]["objects"] if known else None
        rows += label_rows(record, x, run.classes)
        pictures.add(record, x, run.classes)
        for i, annotation in enumerate(x.annotations):
            entry = entries[annotation["label_index"]] if entries else None
            x1, y1, x2, y2 = x.boxes[i].tolist()
            group = group_of(annotation, ((x2 - x1) * (y2 - y1)) ** 0.5, entry, run.classes)
            groups[group][0].append(x.losses[i].item())
            groups[group][1].append(x.weights[i].item())
    return groups, rows, pictures
