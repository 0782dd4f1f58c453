"""Content of the report: headings, texts, tables and figures from the measurements."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from operator import attrgetter
from statistics import mean

import torch

from aid.evaluation.kitti_files import note_on_few_objects
from aid.evaluation.kitti_metric import DIFFICULTIES
from aid.utils.text import counted

from ..paired_difference import PairedDifference, paired_difference
from .figures import MAX_CLASSES
from .instances import DOUBTS
from .pairs import Setting, settings_of
from .parts import Heading, Part, ReportFigure, Table, TableCell, Text, code, number
from .precision_recall import Curve
from .runs import Run

__all__ = ["NUM_TIMED", "Findings", "describe", "official_metric"]

# What the groups of DOUBTS are about.
KINDS = {
    "wrong class": "label quality",
    "jittered box": "label quality",
    "mostly hidden": "visibility",
    "tiny": "size",
}
# Maximum number of images for timing a detector.
NUM_TIMED = 30


@dataclass(frozen=True)
class Findings:
    """Measurements on R runs.

    Attributes:
        runs: the R runs.
        rows: R rows of the tables; "classes" holds {class: AP}.
        outcome: summary sentences.
        missing: a line for each thing that the report cannot show, with the reason.
        curves: R entries of :func:`~aid_tools.report.precision_recall.read_curves`; may be empty.
        summary: {instance group: medians}.
        adaptive: the run whose teacher's losses and weights are reported.
        plain: the plain student that the others are compared with, if there is one.
        doubt: sentence above the labels with the largest loss of the teacher; may be empty.
        has_regions: whether a shown image has regions that the metric ignores.
    """

    runs: list[Run]
    rows: list[dict]
    outcome: list[str]
    missing: list[str]
    curves: list[dict[str, dict[str, Curve]]]
    summary: dict[str, dict[str, float]]
    adaptive: Run | None
    plain: Setting | None = None
    doubt: str = ""
    has_regions: bool = False


def official_metric(runs: list[Run]) -> str:
    """Name of the metric: "kitti" if all runs have KITTI's official metric, else COCO's "bbox"."""
    return "kitti" if all(run.metrics_at_end("kitti") for run in runs) else "bbox"


def describe(findings: Findings) -> list[Part]:
    """Build the parts of the report, in order."""
    parts = [*_results(findings)]
    if findings.missing:
        parts += [Heading("Missing from this report"), *map(Text, findings.missing)]
    parts += [*_by_class(findings), *_cost(findings)]
    if official_metric(findings.runs) == "kitti":
        parts += _kitti(findings.runs)
    parts += _curves(findings)
    caption = "Each image with the detections of every run; the legend names the class colors."
    if findings.summary:
        caption += (
            " The last picture of an image shows the labels with class, weight w, which is the "
            "color of the box, and the teacher's loss D."
        )
    if findings.has_regions:
        caption += (
            " Dashed boxes: regions that the metric ignores (annotations with iscrowd 1, such as "
            "crowds, and KITTI's DontCare regions and neighbor classes). A detection of their "
            "class in one counts neither as right nor as wrong."
        )
    alt = "detections of every run on validation images"
    parts += [Heading("Detections"), ReportFigure("detections.png", alt, caption)]
    if findings.summary:
        parts += _instances(findings)
    return parts


def _results(findings: Findings) -> list[Part]:
    rows, plain = findings.rows, findings.plain
    settings = settings_of(findings.runs)
    measures = ["AP50"]
    if any("mask AP" in row for row in rows):
        measures.insert(0, "mask AP")
    table = [
        [
            TableCell(row["run"]), number(row["AP"]), *_against(run, plain),
            *_measured(row, measures), TableCell(row["role"]), number(row["iterations"], "{}"),
            number(row["training_seconds"] / 60),
        ]
        for run, row in zip(findings.runs, rows, strict=True)
    ]  # fmt: skip
    against = ""
    if plain is not None:
        measures.insert(0, "against plain")
        against = f"against plain: difference in AP to the plain student {code(plain.name)}. "
    return [
        *map(Text, findings.outcome),
        *_over_seeds(settings, plain),
        Table("AP of every run", ["run", "AP", *measures, "role", "iterations", "minutes"], table),
        Text(
            f"AP and AP50: COCO's metric on {findings.runs[0].test_set}, in percent. {against}"
            "minutes: training time, without evaluations and without the training of a "
            f"teacher.{_note_on_cache(findings.runs)}"
        ),
        Text(_note_on_seeds(settings)),
    ]


def _note_on_cache(runs: list[Run]) -> str:
    names = [code(run.name) for run in runs if not run.has_comparable_time]
    return f" With TEACHER.CACHE, the time does not compare: {', '.join(names)}." if names else ""


def _against(run: Run, plain: Setting | None) -> list[TableCell]:
    """Difference in AP to the plain student of the same seed, or to its only run."""
    if plain is None:
        return []
    others = plain.by_seed(attrgetter("ap"))
    other = next(iter(others.values())) if len(others) == 1 else others.get(run.cfg.SEED, math.nan)
    # Of the displayed numbers, as in the summary.
    difference = round(run.ap, 1) - round(other, 1)
    if run in plain.runs or math.isnan(difference):
        return [TableCell("-")]
    return [number(difference, "{:+.1f}")]


def _over_seeds(settings: list[Setting], plain: Setting | None) -> list[Part]:
    """Table of the means over seeds, if there are several."""
    if all(len(setting.runs) == 1 for setting in settings):
        return []
    rows = []
    for setting in settings:
        aps = setting.by_seed(attrgetter("ap"))
        rows.append([TableCell(setting.name), number(mean(aps.values()))])
        if plain is not None:
            difference = paired_difference(aps, plain.by_seed(attrgetter("ap")))
            is_other = difference is not None and setting != plain
            rows[-1].append(_with_interval(difference) if is_other else TableCell("-"))
        rows[-1].append(TableCell(", ".join(map(str, aps))))
    header = ["run", "AP", *(["against plain (95 % interval)"] if plain else []), "seeds"]
    return [Table("Mean AP over the seeds", header, rows)]


def _with_interval(difference: PairedDifference) -> TableCell:
    text = f"{difference.mean:+.1f}"
    if difference.seeds > 1:
        low, high = difference.interval
        text += f" ({low:.1f} to {high:.1f})"
    return TableCell(text, difference.mean)


def _note_on_seeds(settings: list[Setting]) -> str:
    if any(len(setting.runs) > 1 for setting in settings):
        return (
            "Runs that differ in their seed only are one row of the first table. Intervals: by "
            "Student's t-distribution, of the differences between runs of the same seed."
        )
    seeds = ", ".join(sorted({str(setting.first.cfg.SEED) for setting in settings}))
    return (
        f"Each row is one run with one seed ({seeds}). With short runs, a difference of a few AP "
        "may be noise: repeat the runs with other seeds, and give the report all of them."
    )


def _by_class(findings: Findings) -> list[Part]:
    classes = findings.runs[0].classes
    table = [[TableCell(row["run"]), *_measured(row["classes"], classes)] for row in findings.rows]
    note = Text(f"-: a class without objects in {findings.runs[0].test_set}.")
    lacks_ap = any(cell.text == "-" for row in table for cell in row[1:])
    return [
        Heading("AP by class"),
        Table("COCO AP by class", ["run", *classes], table),
        *([note] if lacks_ap else []),
    ]


def _measured(row: dict, measures: list[str]) -> list[TableCell]:
    return [number(row.get(key, math.nan)) for key in measures]


def _cost(findings: Findings) -> list[Part]:
    device = findings.runs[0].cfg.MODEL.DEVICE
    if device == "cpu":
        device = f"CPU, {counted(torch.get_num_threads(), 'thread')}"
    header = ["run", "parameters", "GFLOPs", "s / image", "s / iteration"]
    table = [
        [
            TableCell(row["run"]), number(row["parameters"], "{:.2f} M"),
            number(row["gflops"], "{:.2f}"), number(row["seconds"], "{:.3f}"),
            number(row["seconds_per_iteration"], "{:.3f}"),
        ]
        for row in findings.rows
    ]  # fmt: skip
    return [
        Heading("Cost"),
        Table("Cost of every run", header, table),
        Text(
            "GFLOPs: multiply-adds for one image, in billions; in two-stage detectors they depend "
            "on the number of proposals, and so on the weights. s / image: median inference time "
            f"over up to {NUM_TIMED} images, one at a time, all detectors in turn; {device}. "
            f"s / iteration: median of training.{_note_on_cache(findings.runs)}"
        ),
    ]


def _kitti(runs: list[Run]) -> list[Part]:
    metrics = [run.metrics_at_end("kitti") for run in runs]
    keys = [f"{name}-{d}" for name in runs[0].classes for d in DIFFICULTIES]
    header = ["run", *(key.replace("-", " ") for key in keys)]
    table = [
        [TableCell(run.name), *(number(x[f"AP_R40-{key}"]) for key in keys)]
        for run, x in zip(runs, metrics, strict=True)
    ]
    text = "AP at 40 recall positions, in percent, on the objects of each difficulty level."
    note = note_on_few_objects({key: int(metrics[0][f"objects-{key}"]) for key in keys})
    return [
        Heading("KITTI's official metric"),
        Text(f"{text} {note}".rstrip()),
        Table("KITTI's AP by class and difficulty", header, table),
    ]


def _curves(findings: Findings) -> list[Part]:
    parts = [
        Heading("Training"),
        ReportFigure(
            "curves.png",
            "training curves",
            "Task loss and distillation loss (each the sum of its components), mean instance "
            "weight, and AP of each evaluation. metrics.json holds the single components.",
        ),
    ]
    if not any(findings.curves):
        return parts
    metric = "COCO's metric, at two IoU thresholds"
    if official_metric(findings.runs) == "kitti":
        metric = "KITTI's official metric, by difficulty, at 41 recall positions"
    most = max(map(len, findings.curves))
    note = f" Only the first {MAX_CLASSES} of {most} classes." if most > MAX_CLASSES else ""
    return [
        *parts,
        Heading("Precision and recall"),
        ReportFigure(
            "precision_recall.png",
            "precision over recall of every run, by class",
            f"{metric}, from the detections in inference/. Numbers in the panels: AP in percent, "
            f"the area under the curve.{note}",
        ),
    ]


def _instances(findings: Findings) -> list[Part]:
    run = findings.adaptive
    mapped = ""
    if run.cfg.TEACHER.CLASS_MAP:
        mapped = (
            " The teacher's classes are mapped to the student's: D has no class component where a "
            "class has no counterpart."
        )
    rows = [
        [
            TableCell(name),
            number(x["instances"], "{}"),
            number(x["teacher_loss"], "{:.2f}"),
            number(x["weight"], "{:.2f}"),
        ]
        for name, x in findings.summary.items()
    ]
    return [
        Heading("Teacher's loss on the training labels"),
        *([Text(findings.doubt)] if findings.doubt else []),
        Text(
            f"{code(run.name)}: median of the teacher's loss D and of the weight w on instances of "
            f"{run.cfg.DATASETS.TRAIN[0]}, grouped {_grouping(findings.summary)}{mapped} "
            "`suspicious_labels.csv`, beside this report, lists the labels with the largest D."
        ),
        Table(
            "Median of the teacher's loss and of the weight, by group of training instances",
            ["group", "instances", "teacher's loss D", "weight w"],
            rows,
        ),
        ReportFigure(
            "instances.png",
            "teacher's loss and weight by group",
            "Boxes span the quartiles, with a line at the median. Whiskers reach to the last value "
            "within 1.5 times the length of the box; values beyond are not drawn. The number of "
            "instances is in parentheses.",
        ),
        ReportFigure(
            "suspicious_labels.png",
            "crops of the training labels with the largest loss of the teacher",
            "The first labels of `suspicious_labels.csv`. `tools/visualize.py` with "
            "`--contact-sheet` shows more, and those with the smallest loss.",
        ),
    ]


def _grouping(groups: Iterable[str]) -> str:
    """Description of the grouping, limited to the groups that occur."""
    criteria = [DOUBTS[name] for name in DOUBTS if name in groups]
    if not criteria:
        return "by class."
    kinds = [*dict.fromkeys(KINDS[name] for name in DOUBTS if name in groups)]
    return (
        f"by {', '.join(kinds)} and class. Each instance is in the first group that applies: "
        f"{'; '.join(criteria)}; otherwise its class."
    )
