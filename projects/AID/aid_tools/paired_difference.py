"""Differences between runs, paired by seed."""

import math
from statistics import mean, stdev

__all__ = ["PairedDifference", "paired_difference"]

# 97.5 % quantiles of Student's t-distribution for 1, 2, ... degrees of freedom.
T_QUANTILES = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
)  # fmt: skip


class PairedDifference:
    """Mean of paired differences, with its 95 % confidence interval by Student's t-distribution.

    Attributes:
        seeds: number of pairs.
        mean: mean of the differences.
        interval: (low, high); infinite for a single pair.
    """

    def __init__(self, differences: list[float]):
        self.seeds = len(differences)
        self.mean = mean(differences)
        half = math.inf
        if self.seeds > 1:
            t = T_QUANTILES[min(self.seeds - 1, len(T_QUANTILES)) - 1]
            half = t * stdev(differences) / math.sqrt(self.seeds)
        self.interval = (self.mean - half, self.mean + half)


def paired_difference(
    values: dict[int, float], baseline: dict[int, float]
) -> PairedDifference | None:
    """Difference between two sets of runs over their common seeds; None without common seeds.

    Args:
        values: {seed: metric}.
        baseline: {seed: metric}, subtracted.
    """
    seeds = sorted(values.keys() & baseline.keys())
    return PairedDifference([values[s] - baseline[s] for s in seeds]) if seeds else None
