"""Tables, figures and study.json of a study's finished runs."""

import os
import re
from statistics import mean

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from aid.utils.errors import AIDError
from aid.utils.files import json_text, whole_file, write_text

from ..paired_difference import PairedDifference
from ..report.markdown import markdown_table
from ..text import markdown_text
from .cells import BASELINES, EQUAL_TIME, GridCells, Group, against, cells_of, compare_rules
from .figures import draw_differences, draw_strengths, draw_times
from .strengths import FACTORS, REPORT, Tuned, tune

__all__ = ["write_study"]

# Labels shown for measurements on finished runs.
MEASURED = ("set", "regime", "detector", "iterations", "rule")

# Results of a run, besides its APs, that are in study.json if they were measured.
KEPT = ("conditions", "minutes")


def write_study(
    results: list[dict], weights: list[dict], gradients: list[dict], folder: str
) -> None:
    """Write study.json, tables.md and figures into ``folder``.

    Args:
        results: results of all finished runs.
        weights: results of :func:`~aid_tools.study.separation.measure_weights` for some runs.
        gradients: results of :func:`~aid_tools.study.gradients.measure_gradients` for some runs.
        folder: output folder.

    Raises:
        AIDError: there is no result, or the folder cannot be written.
    """
    groups = cells_of(results)
    if not groups:
        raise AIDError("no run of the study is finished: run it without --report first")
    content = {
        "comparisons": compare_rules(results, BASELINES),
        "equal_time": compare_rules(results, EQUAL_TIME),
        "strengths": [x.as_dict() for x in tune(results)],
        "weights": weights,
        "gradients": gradients,
        "runs": [_as_run(x) for x in results],
    }
    try:
        os.makedirs(folder, exist_ok=True)
        write_text(os.path.join(folder, "study.json"), _as_json(content))
        parts = ["# All runs of the study", _teachers(results)]
        parts += _differences(content["comparisons"], folder)
        parts += _strengths(tune(results))
        parts += _weights(weights)
        parts += _gradients(gradients)
        for group, cells in sorted(groups.items()):
            parts += _group(group, cells, folder)
        write_text(os.path.join(folder, "tables.md"), "\n\n".join(parts) + "\n")
    except OSError as error:
        raise AIDError(f"{folder} cannot be written: {error.strerror}") from error


def _as_json(lists: dict[str, list[dict]]) -> str:
    """Write one entry per line, so that a diff shows the changed entries only."""
    lines = {name: ",\n".join(map(json_text, entries)) for name, entries in lists.items()}
    return "{\n" + ",\n".join(f'"{k}": [\n{v}\n]' for k, v in lines.items()) + "\n}\n"


def _as_run(result: dict) -> dict:
    metrics = {k: v for k, v in result.items() if k.startswith("AP") or k in KEPT}
    return {**result["labels"], **metrics, "map_mean": result.get("map_mean")}


def _save(figure: Figure, folder: str, name: str) -> str:
    with whole_file(os.path.join(folder, name)) as f:
        figure.savefig(f, format="png", dpi=110)
    plt.close(figure)
    return name


def _teachers(results: list[dict]) -> str:
    rows = [
        [*(x["labels"][k] for k in ("set", "scenes", "detector")), f"{x['AP']:.1f}"]
        for x in results
        if "rule" not in x["labels"]
    ]
    return "Teachers:\n\n" + markdown_table(rows, ["set", "trained on", "detector", "AP there"])


def _differences(comparisons: list[dict], folder: str) -> list[str]:
    """Figure of the differences on the scenes for reporting, without the control runs."""
    shown = [
        x
        for x in comparisons
        if (x["set"], x["metric"]) == (REPORT, "AP") and x["seeds"] > 2
        and not x["rule"].endswith("_strength")
    ]  # fmt: skip
    if not shown:
        return []
    name = _save(draw_differences(shown), folder, "differences.png")
    return [f"## Differences\n\n![means, 95 % confidence intervals and numbers of seeds]({name})"]


def _strengths(tuned: list[Tuned]) -> list[str]:
    if not tuned:
        return []
    rows = []
    for x in tuned:
        row = [x.group.regime, x.group.detector, x.rule, f"{x.strength:g}"]
        for factor in FACTORS:
            change = _difference(x.fall(factor)) if factor != "best" else ""
            row.append(_mean(x.ap(factor)) + (f" ({change})" if change else ""))
        rows.append(row)
    header = ["regime", "detector", "rule", "best strength", *(f"AP at {x}" for x in FACTORS)]
    return [
        "## Best and wrong strengths",
        "The best strength was chosen on other scenes. In parentheses: the change from the best "
        "strength, paired by seed, with its 95 % confidence interval.",
        markdown_table(rows, header),
    ]


def _weights(weights: list[dict]) -> list[str]:
    if not weights:
        return []
    flags = list(weights[0]["auc"])
    rows = [
        [
            *(x["labels"][name] for name in MEASURED),
            x["at"],
            f"{x['mean']:.2f}",
            *(
                "" if x["auc"][flag] is None else f"{x['auc'][flag]:.2f}"
                for flag in flags
            ),
            *(f"{value:+.2f}" for value in x["correlation"].values()),
        ]
        for x in weights
    ]  # fmt: skip
    header = [*MEASURED, "at", "mean w", *(f"AUC {flag}" for flag in flags)]
    header += ["corr. visible", "corr. size"]
    return [
        "## Instances with small weights",
        "Seed 0. AUC: the probability that an instance of this kind has a smaller weight than one "
        "that is not; 0.5 is chance level. The last two columns are Spearman's rank correlations "
        "of the weight with the visible fraction and with the size. Rules that use the teacher "
        "alone rank the instances equally at the start and at the end of training.",
        markdown_table(rows, header),
    ]


def _gradients(gradients: list[dict]) -> list[str]:
    if not gradients:
        return []
    names = (*MEASURED, "strength")
    rows = [
        [
            *(x["labels"][name] for name in names),
            x["at"],
            f"{x['ratio']:.1f}",
            f"{x['cosine']:+.2f}",
        ]
        for x in gradients
    ]
    return [
        "## Strength of imitation",
        "Gradients of the distillation loss and of the task loss with respect to the student's "
        "backbone: ratio of their norms, and cosine between them. Seed 0, medians of "
        f"{gradients[0]['batches']} batches.",
        markdown_table(rows, [*names, "at", "ratio", "cosine"]),
    ]


def _group(group: Group, cells: GridCells, folder: str) -> list[str]:
    title = f"{group.set}, {group.regime}, {group.detector}, {group.iterations} iterations"
    parts = [f"## {markdown_text(title)}", _table(cells)]
    if len({strength for _, strength in cells}) > 2:
        name = _save(draw_strengths(cells), folder, f"{_file_name(group)}.png")
        parts.append(f"![AP against strength]({name})")
    if figure := draw_times(cells):
        name = _save(figure, folder, f"{_file_name(group)}_time.png")
        parts.append(f"![AP against minutes of training]({name})")
    return parts


def _file_name(group: Group) -> str:
    """Name of the group's figure; a study's names may have any characters."""
    return re.sub(r"[^\w.-]", "_", "_".join(map(str, group)))


def _table(cells: GridCells) -> str:
    runs = [run for cell in cells.values() for run in cell.runs.values()]
    classes = sorted({k for run in runs for k in run if k.startswith("AP-")})
    conditions = sorted({condition for run in runs for condition in run["conditions"]})
    shown = {"AP50": "AP50", **{f"AP {k.removeprefix('AP-')}": k for k in classes}}
    shown |= {f"{name} {c}": f"{c} {name}" for c in conditions for name in ("AP", "AP50")}
    header = ["rule", "strength", "mean w", "AP", "AP by seed", *shown]
    header += [f"against {name}" for name in BASELINES]
    rows = []
    for (rule, strength), cell in sorted(cells.items()):
        aps = cell.values("AP")
        weights = [x["map_mean"] for x in cell.runs.values() if x["map_mean"] is not None]
        row = [rule, f"{strength:g}", f"{mean(weights):.2f}" if weights else ""]
        row += [_mean(aps), " ".join(f"{aps[seed]:.1f}" for seed in sorted(aps))]
        row += [_mean(cell.values(metric)) for metric in shown.values()]
        row += [_difference(against(cells, cell, name)) for name in BASELINES.values()]
        rows.append(row)
    return markdown_table(rows, header)


def _mean(values: dict[int, float]) -> str:
    return f"{mean(values.values()):.1f}" if values else ""


def _difference(difference: PairedDifference | None) -> str:
    if difference is None:
        return ""
    if difference.seeds < 2:
        return f"{difference.mean:+.1f}"
    half = difference.interval[1] - difference.mean
    return f"{difference.mean:+.1f} ± {half:.1f}"
