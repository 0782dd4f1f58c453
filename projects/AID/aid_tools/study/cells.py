"""Runs put together by what they share, and compared with each other."""

from collections import defaultdict
from typing import NamedTuple

from .results import Difference, paired_difference

__all__ = ["BASELINES", "EQUAL_TIME", "Cell", "Group", "against", "cells_of", "compare"]

METRICS = ("AP", "AP50")
MEAN_TOLERANCE = 0.01
# Rules that depend on the one that is compared: the same imitation without weights, and with a
# constant of the same mean weight.
UNWEIGHTED, CONTROL = "unweighted", "control"
# What a rule is compared with: name in study.json, and the rule.
BASELINES = {
    "plain_student": "plain_student",
    "plain_distillation": UNWEIGHTED,
    "equal_strength": CONTROL,
}
# The same at equal wall time: a plain student takes more steps in the time that a teacher takes.
EQUAL_TIME = {"plain_student": "plain_student_equal_time"}


class Group(NamedTuple):
    """What runs must share to be compared."""

    set: str
    regime: str
    detector: str
    iterations: int


class Cell:
    """Runs that differ in their seed alone.

    Attributes:
        rule, strength: of these runs; the rest is in the group that the cell belongs to.
        unweighted: the rule that imitates the same without weights.
        runs: {seed: results}.
    """

    def __init__(self, rule: str, strength: float, unweighted: str):
        self.rule = rule
        self.strength = strength
        self.unweighted = unweighted
        self.runs: dict[int, dict] = {}

    def values(self, metric: str) -> dict[int, float]:
        """{seed: metric}; a metric of a condition is written as "night AP"."""
        *condition, name = metric.split()
        sources = {
            seed: run["conditions"].get(condition[0], {}) if condition else run
            for seed, run in self.runs.items()
        }
        return {seed: x[name] for seed, x in sources.items() if x.get(name) is not None}

    @property
    def has_mean_1(self) -> bool:
        """Whether the rule's weights have mean 1: it is then as strong as plain distillation."""
        means = [run["map_mean"] for run in self.runs.values()]
        return all(x is not None and abs(x - 1) < MEAN_TOLERANCE for x in means)


Cells = dict[tuple[str, float], Cell]


def cells_of(results: list[dict]) -> dict[Group, Cells]:
    """{group: {(rule, strength): cell}} of all students' results."""
    groups = defaultdict(dict)
    for result in results:
        labels = result["labels"]
        if "rule" not in labels:  # a teacher
            continue
        group = groups[Group(*(labels[name] for name in Group._fields))]
        key = labels["rule"], labels["strength"]
        group.setdefault(key, Cell(*key, labels["unweighted"])).runs[labels["seed"]] = result
    return dict(groups)


def against(cells: Cells, cell: Cell, baseline: str, metric: str = "AP") -> Difference | None:
    """A cell less a baseline of the same strength, paired by seed.

    Args:
        cells: of the group.
        cell: one of them.
        baseline: its rule, UNWEIGHTED or CONTROL.
        metric: see :meth:`Cell.values`.

    Returns:
        None if there is no such baseline, no seed that both have, or it is the cell itself.
    """
    if baseline == CONTROL and not cell.has_mean_1:
        baseline = f"{cell.rule}_strength"
    elif baseline in (UNWEIGHTED, CONTROL):
        baseline = cell.unweighted
    # A plain student has no strength: it is there once.
    other = cells.get((baseline, cell.strength)) or cells.get((baseline, 0))
    if other is None or other is cell:
        return None
    return paired_difference(cell.values(metric), other.values(metric))


def compare(results: list[dict], baselines: dict[str, str]) -> list[dict]:
    """Every rule against every baseline at the same strength, paired by seed.

    Args:
        results: of all runs.
        baselines: {name in the comparison: rule}.

    Returns:
        Entries with set, regime, detector, iterations, rule, strength, against, metric, seeds, mean
        and ci95, the last two in points of AP.
    """
    comparisons = []
    for group, cells in cells_of(results).items():
        for cell in cells.values():
            for name, baseline in baselines.items():
                for metric in METRICS:
                    found = against(cells, cell, baseline, metric)
                    if found is None or found.seeds < 2:
                        continue
                    comparisons.append(
                        {
                            **group._asdict(),
                            "rule": cell.rule,
                            "strength": cell.strength,
                            "against": name,
                            "metric": metric,
                            "seeds": found.seeds,
                            "mean": found.mean,
                            "ci95": list(found.interval),
                        }
                    )
    return comparisons
