"""How strong distillation should be with each rule, and what a wrong strength costs."""

import math
from dataclasses import dataclass
from statistics import mean

from .cells import Cell, Cells, Group, cells_of
from .results import Difference, paired_difference

__all__ = ["CHOOSE", "FACTORS", "REPORT", "Tuned", "tune"]

# Sets of scenes, of a study's section scenes.sets: strengths are chosen on the one and judged on
# the other.
CHOOSE, REPORT = "choose", "report"
# How far from the best strength, as words and as numbers.
FACTORS = {"a 10th": 0.1, "a 3rd": 1 / 3, "best": 1.0, "3 times": 3.0, "10 times": 10.0}
MIN_STRENGTHS = 3
# Strengths of a study need not be exact multiples of each other.
TOLERANCE = 1.2


@dataclass(frozen=True)
class Tuned:
    """A rule at its best strength and around it.

    Attributes:
        group: on whose scenes it is judged.
        rule: its name.
        strength: that with the best mean AP on the scenes to choose on.
        cells: {factor: runs at that factor of the best strength}, of those that were run.
    """

    group: Group
    rule: str
    strength: float
    cells: dict[str, Cell]

    def ap(self, factor: str) -> dict[int, float]:
        """{seed: AP} at a factor of the best strength; empty if it was not run."""
        return self.cells[factor].values("AP") if factor in self.cells else {}

    def fall(self, factor: str) -> Difference | None:
        """What a wrong strength changes, paired by seed; None if it was not run."""
        return paired_difference(self.ap(factor), self.ap("best"))

    def as_dict(self) -> dict:
        """For study.json: AP and its change by factor."""
        falls = {factor: self.fall(factor) for factor in self.cells if factor != "best"}
        return {
            **self.group._asdict(),
            "rule": self.rule,
            "best_strength": self.strength,
            "AP": {factor: mean(self.ap(factor).values()) for factor in self.cells},
            "fall": {
                factor: {"seeds": x.seeds, "mean": x.mean, "ci95": list(x.interval)}
                for factor, x in falls.items()
                if x is not None and x.seeds > 1
            },
        }


def tune(results: list[dict]) -> list[Tuned]:
    """Every rule of which at least three strengths were run on the scenes to choose on."""
    groups = cells_of(results)
    found = []
    for group, cells in groups.items():
        judged = groups.get(group._replace(set=REPORT))
        if group.set != CHOOSE or judged is None:
            continue
        for rule in dict.fromkeys(rule for rule, _ in cells):
            aps = {c.strength: mean(c.values("AP").values()) for c in _of(cells, rule)}
            if len(aps) < MIN_STRENGTHS:
                continue
            best = max(aps, key=aps.get)
            near = {name: _near(judged, rule, best * x) for name, x in FACTORS.items()}
            near = {name: cell for name, cell in near.items() if cell is not None}
            if "best" in near:
                found.append(Tuned(group._replace(set=REPORT), rule, best, near))
    return found


def _of(cells: Cells, rule: str) -> list[Cell]:
    return [cell for cell in cells.values() if cell.rule == rule]


def _near(cells: Cells, rule: str, strength: float) -> Cell | None:
    near = (
        cell
        for cell in _of(cells, rule)
        if abs(math.log(cell.strength / strength)) < math.log(TOLERANCE)
    )
    return next(near, None)
