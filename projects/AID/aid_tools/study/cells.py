"""Runs grouped by their common settings, and comparisons between the groups."""

from collections import defaultdict
from typing import NamedTuple

from ..paired_difference import PairedDifference, paired_difference

__all__ = [
    "BASELINES",
    "EQUAL_TIME",
    "GridCell",
    "GridCells",
    "Group",
    "against",
    "cells_of",
    "compare_rules",
]

METRICS = ("AP", "AP50")
MEAN_TOLERANCE = 0.01
# Baselines that depend on the rule: the same imitation without weights, and with a constant equal
# to the mean weight.
UNWEIGHTED, CONTROL = "unweighted", "control"
# {name of a baseline in study.json: its rule}.
BASELINES = {
    "plain_student": "plain_student",
    "plain_distillation": UNWEIGHTED,
    "equal_strength": CONTROL,
}
# Likewise at equal training time: without a teacher, a plain student completes more iterations.
EQUAL_TIME = {"plain_student": "plain_student_equal_time"}


class Group(NamedTuple):
    """Settings shared by all runs of a comparison."""

    set: str
    regime: str
    detector: str
    iterations: int


class GridCell:
    """Runs that differ only in their seed.

    Attributes:
        rule: rule of these runs.
        strength: strength of these runs; the other settings are those of the cell's group.
        unweighted: the rule with the same imitation without weights.
        runs: {seed: results}.
    """

    def __init__(self, rule: str, strength: float, unweighted: str):
        self.rule = rule
        self.strength = strength
        self.unweighted = unweighted
        self.runs: dict[int, dict] = {}

    def values(self, metric: str) -> dict[int, float]:
        """{seed: value} of a metric such as "AP", or "night AP" for the condition night."""
        *condition, name = metric.split()
        sources = {
            seed: run["conditions"].get(condition[0], {}) if condition else run
            for seed, run in self.runs.items()
        }
        return {seed: x[name] for seed, x in sources.items() if x.get(name) is not None}

    @property
    def has_mean_1(self) -> bool:
        """Whether the weights have mean 1, which is the strength of plain distillation."""
        means = [run["map_mean"] for run in self.runs.values()]
        return all(x is not None and abs(x - 1) < MEAN_TOLERANCE for x in means)


GridCells = dict[tuple[str, float], GridCell]


def cells_of(results: list[dict]) -> dict[Group, GridCells]:
    """Group the results of all students as {group: {(rule, strength): cell}}."""
    groups = defaultdict(dict)
    for result in results:
        labels = result["labels"]
        if "rule" not in labels:  # a teacher
            continue
        group = groups[Group(*(labels[name] for name in Group._fields))]
        key = labels["rule"], labels["strength"]
        group.setdefault(key, GridCell(*key, labels["unweighted"])).runs[labels["seed"]] = result
    return dict(groups)


def against(
    cells: GridCells, cell: GridCell, baseline: str, metric: str = "AP"
) -> PairedDifference | None:
    """Difference between a cell and a baseline of the same strength, paired by seed.

    Args:
        cells: all cells of the group.
        cell: one of ``cells``.
        baseline: rule of the baseline, UNWEIGHTED or CONTROL.
        metric: see :meth:`GridCell.values`.

    Returns:
        None if the baseline is missing, shares no seed with the cell, or is the cell itself.
    """
    if baseline == CONTROL and not cell.has_mean_1:
        baseline = f"{cell.rule}_strength"
    elif baseline in (UNWEIGHTED, CONTROL):
        baseline = cell.unweighted
    # A plain student has no strength; its cell has strength 0.
    other = cells.get((baseline, cell.strength)) or cells.get((baseline, 0))
    if other is None or other is cell:
        return None
    return paired_difference(cell.values(metric), other.values(metric))


def compare_rules(results: list[dict], baselines: dict[str, str]) -> list[dict]:
    """Compare every rule with every baseline of the same strength, paired by seed.

    Args:
        results: results of all runs.
        baselines: {name of a baseline: its rule}.

    Returns:
        Entries with set, regime, detector, iterations, rule, strength, against (name of the
        baseline), metric, seeds, mean and ci95; the last two in points of AP.
    """
    comparisons = []
    for group, cells in cells_of(results).items():
        for cell in cells.values():
            for name, baseline in baselines.items():
                for metric in METRICS:
                    difference = against(cells, cell, baseline, metric)
                    if difference is None or difference.seeds < 2:
                        continue
                    comparisons.append(
                        {
                            **group._asdict(),
                            "rule": cell.rule,
                            "strength": cell.strength,
                            "against": name,
                            "metric": metric,
                            "seeds": difference.seeds,
                            "mean": difference.mean,
                            "ci95": list(difference.interval),
                        }
                    )
    return comparisons
