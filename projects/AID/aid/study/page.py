"""Tables, figures and study.json of a study's finished runs."""

import json
import os
from collections import defaultdict
from statistics import mean

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from tabulate import tabulate

from ..errors import AIDError
from .results import paired_difference
from .rules_figure import draw_rules

__all__ = ["Cell", "cells_of", "compare", "write_study"]

METRICS = ("AP", "AP50")
# What a rule is compared with: name in study.json, and the rule, of which "" stands for the rule's
# own control.
BASELINES = {
    "plain_student": "plain_student",
    "plain_distillation": "plain_distillation",
    "equal_strength": "",
}


class Cell:
    """Runs that differ in their seed alone.

    Attributes:
        rule, strength: of these runs; the rest is in the group that the cell belongs to.
        runs: {seed: results}.
    """

    def __init__(self, rule: str, strength: float):
        self.rule = rule
        self.strength = strength
        self.runs: dict[int, dict] = {}

    def values(self, metric: str) -> dict[int, float]:
        """{seed: metric}; a metric of a condition is written as "night AP"."""
        *condition, name = metric.split()
        sources = {
            seed: run["conditions"].get(condition[0], {}) if condition else run
            for seed, run in self.runs.items()
        }
        return {seed: x[name] for seed, x in sources.items() if x.get(name) is not None}


def cells_of(results: list[dict]) -> dict[tuple, dict[tuple[str, float], Cell]]:
    """{(set, regime, detector, iterations): {(rule, strength): cell}} of all students' results."""
    groups = defaultdict(dict)
    for result in results:
        labels = result["labels"]
        if "rule" not in labels:  # a teacher
            continue
        group = groups[tuple(labels[x] for x in ("set", "regime", "detector", "iterations"))]
        key = labels["rule"], labels["strength"]
        group.setdefault(key, Cell(*key)).runs[labels["seed"]] = result
    return dict(groups)


def compare(results: list[dict]) -> list[dict]:
    """Every rule against every baseline at the same strength, paired by seed.

    Returns:
        The entries of study.json: regime, detector, rule, against, metric, seeds, mean and ci95,
        with set, iterations and strength, in points of AP.
    """
    comparisons = []
    for (set_name, regime, detector, iterations), cells in cells_of(results).items():
        for (rule, strength), cell in cells.items():
            for against, name in BASELINES.items():
                baseline = _baseline(cells, name or f"{rule}_strength", strength)
                if baseline is None or baseline is cell:
                    continue
                for metric in METRICS:
                    found = paired_difference(cell.values(metric), baseline.values(metric))
                    if found is None or found.seeds < 2:
                        continue
                    comparisons.append(
                        {
                            "set": set_name,
                            "regime": regime,
                            "detector": detector,
                            "iterations": iterations,
                            "rule": rule,
                            "strength": strength,
                            "against": against,
                            "metric": metric,
                            "seeds": found.seeds,
                            "mean": found.mean,
                            "ci95": list(found.interval),
                        }
                    )
    return comparisons


def _baseline(cells: dict, rule: str, strength: float) -> Cell | None:
    # A plain student has no strength: it is there once.
    return cells.get((rule, strength)) or cells.get((rule, 0))


def write_study(results: list[dict], weights: list[dict], folder: str) -> None:
    """Write study.json, tables.md and a figure for each regime and detector into ``folder``.

    Args:
        results: of all finished runs.
        weights: of :func:`~aid.study.separation.measure_weights`, for some of them.
        folder: to write to.

    Raises:
        AIDError: there is no result, or the folder cannot be written.
    """
    groups = cells_of(results)
    if not groups:
        raise AIDError("no run of the study is done: call without --report first")
    comparisons = compare(results)
    try:
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, "study.json"), "w") as f:
            json.dump({"comparisons": comparisons}, f, indent=1)
        parts = ["# Every run of the study", _teachers(results)]
        for group, cells in sorted(groups.items()):
            name = "_".join(map(str, group))
            parts += [f"## {', '.join(map(str, group))} iterations", _table(group, cells)]
            if len({strength for _, strength in cells}) > 2:
                figure = _draw(cells)
                figure.savefig(os.path.join(folder, f"{name}.png"), dpi=110)
                plt.close(figure)
                parts.append(f"![AP against strength]({name}.png)")
        parts += _weights(weights)
        figure = draw_rules()
        figure.savefig(os.path.join(folder, "rules.png"), dpi=110)
        plt.close(figure)
        parts.append("## What the rules make of it\n\n![weight by rule](rules.png)")
        with open(os.path.join(folder, "tables.md"), "w") as f:
            f.write("\n\n".join(parts) + "\n")
    except OSError as error:
        raise AIDError(f"{folder} cannot be written: {error.strerror}") from error


def _teachers(results: list[dict]) -> str:
    rows = [
        [*(x["labels"][k] for k in ("set", "scenes", "detector")), f"{x['AP']:.1f}"]
        for x in results
        if "rule" not in x["labels"]
    ]
    return "Teachers:\n\n" + tabulate(
        rows, ["set", "trained on", "detector", "AP there"], tablefmt="github"
    )


def _weights(weights: list[dict]) -> list[str]:
    if not weights:
        return []
    flags = list(weights[0]["auc"])
    names = ("set", "regime", "detector", "rule")
    rows = [
        [
            *(x["labels"][name] for name in names),
            f"{x['mean']:.2f}",
            *(
                "" if x["auc"][flag] != x["auc"][flag] else f"{x['auc'][flag]:.2f}"
                for flag in flags
            ),
            *(f"{value:+.2f}" for value in x["correlation"].values()),
        ]
        for x in weights
    ]
    header = [*names, "mean w", *(f"AUC {flag}" for flag in flags), "with visible", "with size"]
    return [
        "## Where the weights fall",
        "At the end of training, seed 0. AUC: the chance that an instance of this kind weighs less "
        "than one that is not; 0.5 tells nothing. The last two are Spearman's rank correlations of "
        "the weight with the visible share and with the size.",
        tabulate(rows, header, tablefmt="github", disable_numparse=True),
    ]


def _table(group: tuple, cells: dict[tuple[str, float], Cell]) -> str:
    conditions = sorted({c for cell in cells.values() for x in cell.runs.values()
                         for c in x["conditions"]})  # fmt: skip
    header = ["rule", "strength", "mean w", "AP", "AP by seed", "AP50"]
    header += [f"AP {c}" for c in conditions]
    header += [f"against {against}" for against in BASELINES]
    rows = []
    for (rule, strength), cell in sorted(cells.items()):
        aps = cell.values("AP")
        weights = [x["map_mean"] for x in cell.runs.values() if x["map_mean"] is not None]
        row = [rule, f"{strength:g}", f"{mean(weights):.2f}" if weights else ""]
        row += [_mean(aps), " ".join(f"{aps[seed]:.1f}" for seed in sorted(aps))]
        row += [_mean(cell.values(name)) for name in ("AP50", *(f"{c} AP" for c in conditions))]
        for name in BASELINES.values():
            baseline = _baseline(cells, name or f"{rule}_strength", strength)
            row.append(_difference(aps, baseline.values("AP") if baseline else {}))
        rows.append(row)
    return tabulate(rows, header, tablefmt="github", disable_numparse=True)


def _mean(values: dict[int, float]) -> str:
    return f"{mean(values.values()):.1f}" if values else ""


def _difference(ours: dict[int, float], theirs: dict[int, float]) -> str:
    found = paired_difference(ours, theirs)
    if found is None or ours == theirs:
        return ""
    if found.seeds < 2:
        return f"{found.mean:+.1f}"
    half = found.interval[1] - found.mean
    return f"{found.mean:+.1f} ± {half:.1f}"


def _draw(cells: dict[tuple[str, float], Cell]) -> Figure:
    """AP against strength, a line for each rule, bars over the range of the seeds."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    rules = sorted({rule for rule, strength in cells if strength > 0})
    for rule in rules:
        strengths = sorted(strength for name, strength in cells if name == rule)
        values = [list(cells[rule, s].values("AP").values()) for s in strengths]
        middle = [mean(v) for v in values]
        low = [m - min(v) for m, v in zip(middle, values, strict=True)]
        high = [max(v) - m for m, v in zip(middle, values, strict=True)]
        axes.errorbar(strengths, middle, (low, high), marker="o", capsize=3, label=rule)
    plain = cells.get(("plain_student", 0))
    if plain is not None:
        level = mean(plain.values("AP").values())
        axes.axhline(level, color="black", linestyle="--", label="plain_student")
    axes.set(xscale="log", xlabel="strength (DISTILLATION.WEIGHT)", ylabel="AP")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return figure
