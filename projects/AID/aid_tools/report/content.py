"""What the report says, from what was measured."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from aid.evaluation.kitti_files import note_on_few_objects
from aid.evaluation.kitti_metric import DIFFICULTIES

from .figures import MAX_CLASSES
from .instances import DOUBTS
from .parts import Cell, Heading, Part, Picture, Table, Text, number
from .precision_recall import Curve
from .runs import Run

__all__ = ["NUM_TIMED", "Findings", "describe", "official_metric"]

# Images, at most, by which a detector's time is measured.
NUM_TIMED = 30


@dataclass(frozen=True)
class Findings:
    """What was found about R runs.

    Attributes:
        runs: R.
        rows: of the tables, R.
        outcome: what came out, in sentences.
        missing: what the report does not show, and why, a line each.
        curves: R, see :func:`~aid_tools.report.precision_recall.read_curves`; may be empty.
        summary: {group of instances: medians}.
        adaptive: the run whose teacher judged the instances.
    """

    runs: list[Run]
    rows: list[dict]
    outcome: list[str]
    missing: list[str]
    curves: list[dict[str, dict[str, Curve]]]
    summary: dict[str, dict[str, float]]
    adaptive: Run | None


def official_metric(runs: list[Run]) -> str:
    """ "kitti" where all runs were tested by KITTI's official metric, else COCO's "bbox"."""
    return "kitti" if all(run.metrics_at_end("kitti") for run in runs) else "bbox"


def describe(findings: Findings) -> list[Part]:
    """The report's parts, in their order."""
    parts = [*_results(findings)]
    if findings.missing:
        parts += [Heading("What is missing"), *map(Text, findings.missing)]
    parts += [*_by_class(findings), *_cost(findings)]
    if official_metric(findings.runs) == "kitti":
        parts += _kitti(findings.runs)
    parts += _curves(findings)
    caption = "One row an image, one column a run; the legend names the colours of the classes."
    if findings.summary:
        caption += (
            " The last column shows the labels, each with its weight w and the teacher's loss D, "
            "brighter where the teacher is believed more."
        )
    alt = "detections of every run on validation images"
    parts += [Heading("Detections"), Picture("detections.png", alt, caption)]
    if findings.summary:
        parts += _instances(findings)
    return parts


def _results(findings: Findings) -> list[Part]:
    rows = findings.rows
    measures = ["AP", "AP50"]
    if any("mask AP" in row for row in rows):
        measures.insert(1, "mask AP")
    table = [
        [
            Cell(row["run"]), Cell(row["role"]), number(row["iterations"], "{}"),
            number(row["training_seconds"] / 60), *_measured(row, measures),
        ]
        for row in rows
    ]  # fmt: skip
    seeds = ", ".join(sorted({str(row["seed"]) for row in rows}))
    return [
        *map(Text, findings.outcome),
        Table("AP of every run", ["run", "role", "iterations", "minutes", *measures], table),
        Text(
            f"AP and AP50 in percent, COCO's metric, on {findings.runs[0].test_set}. minutes: of "
            "training, without evaluations, and without the training of a teacher."
        ),
        Text(
            f"Every row is one run with one seed ({seeds}). One seed of a short run proves "
            "nothing: repeat with other seeds before you believe a difference of a few AP."
        ),
    ]


def _by_class(findings: Findings) -> list[Part]:
    classes = findings.runs[0].classes
    table = [[Cell(row["run"]), *_measured(row, classes)] for row in findings.rows]
    return [Heading("AP by class"), Table("COCO's AP by class", ["run", *classes], table)]


def _measured(row: dict, measures: list[str]) -> list[Cell]:
    return [number(row.get(key, math.nan)) for key in measures]


def _cost(findings: Findings) -> list[Part]:
    device = findings.runs[0].cfg.MODEL.DEVICE
    if device == "cpu":
        device = f"CPU, {torch.get_num_threads()} threads"
    header = ["run", "parameters", "GFLOPs", "s / image", "s / iteration"]
    table = [
        [
            Cell(row["run"]), number(row["parameters"], "{:.2f} M"),
            number(row["gflops"], "{:.2f}"), number(row["seconds"], "{:.3f}"),
            number(row["seconds_per_iteration"], "{:.3f}"),
        ]
        for row in findings.rows
    ]  # fmt: skip
    return [
        Heading("Cost"),
        Table("Cost of every run", header, table),
        Text(
            "GFLOPs: multiply-adds of one image. s / image: median over "
            f"{NUM_TIMED} images at most, one at a time; {device}. s / iteration: of training, "
            "median."
        ),
    ]


def _kitti(runs: list[Run]) -> list[Part]:
    found = [run.metrics_at_end("kitti") for run in runs]
    keys = [f"{name}-{d}" for name in runs[0].classes for d in DIFFICULTIES]
    header = ["run", *(key.replace("-", " ") for key in keys)]
    table = [
        [Cell(run.name), *(number(x[f"AP_R40-{key}"]) for key in keys)]
        for run, x in zip(runs, found, strict=True)
    ]
    text = "AP at 40 recall positions, in percent, on the objects that count at each difficulty."
    note = note_on_few_objects({key: int(found[0][f"objects-{key}"]) for key in keys})
    return [
        Heading("KITTI's official metric"),
        Text(f"{text} {note}".rstrip()),
        Table("KITTI's AP by class and difficulty", header, table),
    ]


def _curves(findings: Findings) -> list[Part]:
    parts = [
        Heading("Training"),
        Picture(
            "curves.png",
            "training curves",
            "Task loss and distillation loss, each the sum of its terms, the mean weight of the "
            "instances, and AP whenever the run was evaluated. metrics.json has every term by "
            "itself.",
        ),
    ]
    if not any(findings.curves):
        return parts
    metric = "COCO's metric, at two limits of the IoU"
    if official_metric(findings.runs) == "kitti":
        metric = "KITTI's official metric, by difficulty, at 41 recall positions"
    most = max(map(len, findings.curves))
    some = f" The first {MAX_CLASSES} of {most} classes." if most > MAX_CLASSES else ""
    return [
        *parts,
        Heading("Precision and recall"),
        Picture(
            "precision_recall.png",
            "precision over recall of every run, by class",
            f"{metric}, from the detections in inference/. Numbers in the panels: AP in percent, "
            f"the area under the curve.{some}",
        ),
    ]


def _instances(findings: Findings) -> list[Part]:
    run = findings.adaptive
    rows = [
        [
            Cell(name),
            number(x["instances"], "{}"),
            number(x["teacher_loss"], "{:.2f}"),
            number(x["weight"], "{:.2f}"),
        ]
        for name, x in findings.summary.items()
    ]
    return [
        Heading("What the teacher makes of the training labels"),
        Text(
            f"For `{run.name}`: median of the teacher's loss D and of the weight w on "
            f"instances of {run.cfg.DATASETS.TRAIN[0]}, {_grouping(findings.summary)}"
        ),
        Table(
            "Median of the teacher's loss and of the weight, by group of training instances",
            ["group", "instances", "teacher's loss D", "weight w"],
            rows,
        ),
        Picture(
            "instances.png",
            "teacher's loss and weight by group",
            "Boxes reach from quartile to quartile, with a line at the median; in brackets the "
            "number of instances.",
        ),
    ]


def _grouping(groups: Iterable[str]) -> str:
    """How instances were grouped, as far as there are such groups."""
    found = [DOUBTS[name] for name in DOUBTS if name in groups]
    if not found:
        return "by class."
    return (
        "by what is known about them. An instance is in the first group that fits: "
        f"{'; '.join(found)}; else its class."
    )
