"""Best distillation strength of each rule, and sensitivity to the strength."""

import math
from dataclasses import dataclass
from statistics import mean

from ..paired_difference import PairedDifference, paired_difference
from .cells import GridCell, GridCells, Group, cells_of

__all__ = ["CHOOSE", "FACTORS", "REPORT", "Tuned", "tune"]

# Sets of scenes (scenes.sets of a study): strengths are chosen on the first and reported on the
# second.
CHOOSE, REPORT = "choose", "report"
# Factors relative to the best strength: name and value.
FACTORS = {"a 10th": 0.1, "a 3rd": 1 / 3, "best": 1.0, "3 times": 3.0, "10 times": 10.0}
MIN_STRENGTHS = 3
# Tolerated ratio, since the strengths of a study need not be exact multiples of each other.
TOLERANCE = 1.2


@dataclass(frozen=True)
class Tuned:
    """Rule at its best strength and at factors of it.

    Attributes:
        group: group with the reported scenes.
        rule: name of the rule.
        strength: strength with the best mean AP on the scenes for choosing.
        cells: {factor: runs at that factor of the best strength}, without missing runs.
    """

    group: Group
    rule: str
    strength: float
    cells: dict[str, GridCell]

    def ap(self, factor: str) -> dict[int, float]:
        """{seed: AP} at a factor of the best strength; empty without such runs."""
        return self.cells[factor].values("AP") if factor in self.cells else {}

    def fall(self, factor: str) -> PairedDifference | None:
        """Change of AP from the best strength, paired by seed; None without such runs."""
        return paired_difference(self.ap(factor), self.ap("best"))

    def as_dict(self) -> dict:
        """Entry of study.json: AP and its change by factor."""
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
    """Find the best strength of each rule with at least 3 strengths on the scenes for choosing."""
    groups = cells_of(results)
    tuned = []
    for group, cells in groups.items():
        reported = groups.get(group._replace(set=REPORT))
        if group.set != CHOOSE or reported is None:
            continue
        for rule in dict.fromkeys(rule for rule, _ in cells):
            aps = {c.strength: mean(c.values("AP").values()) for c in _of(cells, rule)}
            if len(aps) < MIN_STRENGTHS:
                continue
            best = max(aps, key=aps.get)
            near = {name: _near(reported, rule, best * x) for name, x in FACTORS.items()}
            near = {name: cell for name, cell in near.items() if cell is not None}
            if "best" in near:
                tuned.append(Tuned(group._replace(set=REPORT), rule, best, near))
    return tuned


def _of(cells: GridCells, rule: str) -> list[GridCell]:
    """Cells of a rule that imitates, which strength 0 does not."""
    return [cell for cell in cells.values() if cell.rule == rule and cell.strength > 0]


def _near(cells: GridCells, rule: str, strength: float) -> GridCell | None:
    near = (
        cell
        for cell in _of(cells, rule)
        if abs(math.log(cell.strength / strength)) < math.log(TOLERANCE)
    )
    return next(near, None)
