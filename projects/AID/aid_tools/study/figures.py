"""Figures of a study's results."""

from collections import defaultdict
from statistics import mean

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from ..text import figure_text
from .cells import BASELINES, GridCells

__all__ = ["draw_differences", "draw_strengths", "draw_times"]

# Labels of a comparison, in the order in which they are shown.
LABELS = {
    "detector": "{}",
    "rule": "{}",
    "regime": "{}",
    "iterations": "{} iterations",
    "strength": "strength {:g}",
}


def draw_strengths(cells: GridCells) -> Figure:
    """Draw AP over strength for each rule with several strengths; bars are the range over seeds."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    shown = set()
    for rule in sorted({rule for rule, _ in cells}):
        strengths = sorted(strength for name, strength in cells if name == rule and strength > 0)
        if len(strengths) < 2:
            continue
        shown.update(strengths)
        values = [list(cells[rule, s].values("AP").values()) for s in strengths]
        middle = [mean(v) for v in values]
        low = [m - min(v) for m, v in zip(middle, values, strict=True)]
        high = [max(v) - m for m, v in zip(middle, values, strict=True)]
        label = figure_text(str(rule))
        axes.errorbar(strengths, middle, (low, high), marker="o", capsize=3, label=label)
    plain = cells.get(("plain_student", 0))
    if plain is not None:
        level = mean(plain.values("AP").values())
        axes.axhline(level, color="black", linestyle="--", label="plain_student")
    axes.set(xscale="log", xlabel="strength (DISTILLATION.WEIGHT)", ylabel="AP")
    axes.set_xticks(sorted(shown), [f"{x:g}" for x in sorted(shown)])
    axes.set_xticks([], minor=True)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return figure


def draw_times(cells: GridCells) -> Figure | None:
    """Draw AP over minutes of training, means over the seeds that all points have.

    Plain students are joined by a line.

    Returns:
        None without plain students of different lengths.
    """
    runs = {
        key: {seed: x for seed, x in cell.runs.items() if x.get("minutes")}
        for key, cell in cells.items()
    }
    timed = {key: of_cell for key, of_cell in runs.items() if of_cell}
    shared = set.intersection(*map(set, timed.values())) if timed else set()
    points = {}
    for key, of_cell in timed.items():
        chosen = [x for seed, x in of_cell.items() if seed in shared or not shared]
        points[key] = mean(x["minutes"] for x in chosen), mean(x["AP"] for x in chosen)
    plain = sorted(x for (rule, _), x in points.items() if rule.startswith("plain_student"))
    if len(plain) < 2:
        return None
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    axes.plot(*zip(*plain, strict=True), color="black", linestyle="--")
    for (rule, _), point in sorted(points.items()):
        color = "black" if rule.startswith("plain_student") else "tab:blue"
        axes.plot(*point, "o", color=color)
        axes.annotate(figure_text(rule), point, (6, -4), textcoords="offset points", fontsize=9)
    axes.set(xlabel="minutes of training", ylabel="AP")
    right, top = (max(values) for values in zip(*points.values(), strict=True))
    axes.set(xlim=(0, 1.3 * right), ylim=(0, 1.1 * top))  # with room for the names
    axes.grid(alpha=0.3)
    return figure


def draw_differences(comparisons: list[dict]) -> Figure:
    """Draw differences in AP: means, 95 % confidence intervals and numbers of seeds.

    There is a panel for each baseline and a row for each rule, regime and detector. What all rows
    have in common is in the title.

    Args:
        comparisons: entries of :func:`~aid_tools.study.cells.compare_rules`, at least one, all of
            the same metric.
    """
    names = [x for x in BASELINES if any(entry["against"] == x for entry in comparisons)]
    common = [k for k in LABELS if k != "rule" and len({x[k] for x in comparisons}) == 1]
    panels = defaultdict(dict)
    for x in comparisons:
        row = _describe(x, [k for k in LABELS if k not in common])
        panels[x["against"]][row] = x
    rows = sorted({row for panel in panels.values() for row in panel}, reverse=True)
    figure, axes = plt.subplots(
        1, len(names), figsize=(5 + 3 * len(names), 1.6 + 0.3 * len(rows)), layout="constrained",
        sharex=True, sharey=True, squeeze=False,
    )  # fmt: skip
    for axis, name in zip(axes[0], names, strict=True):
        axis.axvline(0, color="black", linewidth=0.8)
        for row, x in panels[name].items():
            low, high = x["ci95"]
            color = "tab:green" if low > 0 else "tab:red" if high < 0 else "tab:gray"
            error = [[x["mean"] - low], [high - x["mean"]]]
            place = rows.index(row)
            axis.errorbar(x["mean"], place, xerr=error, fmt="o", capsize=3, color=color)
            axis.annotate(
                f"{x['seeds']} seeds", (x["mean"], place), (0, 4), textcoords="offset points",
                ha="center", fontsize=8,
            )  # fmt: skip
        axis.set(title=f"against {name.replace('_', ' ')}", xlabel="difference in AP")
        axis.set_yticks(range(len(rows)), map(figure_text, rows))
        axis.margins(y=0.3 / len(rows) + 0.1)
        axis.grid(alpha=0.3)
    figure.suptitle(figure_text(_describe(comparisons[0], common)), fontsize="medium")
    return figure


def _describe(comparison: dict, labels: list[str]) -> str:
    return ", ".join(LABELS[k].format(comparison[k]) for k in labels)
