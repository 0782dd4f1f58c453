"""Does a run need more and more? Judged by its samples, and drawn."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from aid.utils.errors import AIDError

__all__ = ["Growth", "draw_growth", "measure_growth", "place_in_time", "slope"]

plt.switch_backend("Agg")  # no display is needed

MIN_SAMPLES = 10
# The line goes through so many samples at most: it looks at all pairs of them.
MAX_SAMPLES = 1000


@dataclass(frozen=True)
class Growth:
    """How a quantity went on in a run.

    Attributes:
        rate: of the line through the judged samples, per 1000 iterations.
        low, high: interval of 95 % of the rate, for samples that do not hang on each other.
        limit: highest rate of a quantity that does not grow.
        last: median of the last tenth of the judged samples.
        samples: number of them.
    """

    rate: float
    low: float
    high: float
    limit: float
    last: float
    samples: int

    @property
    def is_flat(self) -> bool:
        return self.high <= self.limit

    @property
    def is_growing(self) -> bool:
        """Whether it grows beyond doubt: a run may be too short to tell."""
        return self.low > self.limit


def slope(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Theil and Sen's slope: the median of the slopes of all pairs of points.

    What a line of least squares would follow, it does not: peaks, as when a checkpoint is written,
    in up to 29 % of the points.

    Args:
        x, y: (N,), N at least 2, x not constant.

    Returns:
        The slope, and the ends of its interval of 95 % (Sen, JASA 1968).
    """
    step = -(-len(x) // MAX_SAMPLES)
    x, y = x[::step], y[::step]
    n = len(x)
    i, j = np.triu_indices(n, k=1)
    apart = x[i] != x[j]
    slopes = (y[j] - y[i])[apart] / (x[j] - x[i])[apart]
    share = 1.96 * math.sqrt(n * (n - 1) * (2 * n + 5) / 18) / len(slopes)
    around = np.clip([0.5, 0.5 - share / 2, 0.5 + share / 2], 0, 1)
    return tuple(np.quantile(slopes, around).tolist())


def place_in_time(seconds: Sequence[float], logged: Sequence[int]) -> np.ndarray:
    """The iteration at every sample, (N,), in between those that a run logs.

    Args:
        seconds: (N,), of the samples.
        logged: (N,), the last iteration that the run had logged by then.
    """
    seen, first = np.unique(logged, return_index=True)
    return np.interp(seconds, np.asarray(seconds)[first], seen)


def measure_growth(
    iterations: np.ndarray, values: np.ndarray, start: int, end: int, limit: float
) -> Growth:
    """Judge a quantity by its samples from iteration ``start`` to before ``end``.

    Args:
        iterations, values: (N,), of the samples.
        start: what comes before is warming up.
        end: what comes after is no training.
        limit: highest rate per 1000 iterations of a quantity that does not grow.

    Raises:
        AIDError: too few samples to judge by.
    """
    counts = (iterations >= start) & (iterations < end)
    if counts.sum() < MIN_SAMPLES:
        raise AIDError(
            f"{counts.sum()} samples between iteration {start} and {end} are too few to judge by: "
            "raise SOLVER.MAX_ITER, or lower --from-iteration or --interval"
        )
    iterations, values = iterations[counts], values[counts]
    rate, low, high = (1000 * value for value in slope(iterations, values))
    return Growth(
        rate=rate,
        low=low,
        high=high,
        limit=limit,
        last=float(np.median(values[-(-len(values) * 9 // 10) :])),
        samples=len(values),
    )


def draw_growth(
    iterations: np.ndarray, panels: dict[str, tuple[np.ndarray, Growth]], start: int
) -> Figure:
    """Samples against iterations, a panel for each quantity.

    Args:
        iterations: (N,), of the samples.
        panels: {title: (values (N,), what was found of them)}.
        start: first iteration that was judged.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(6 * len(panels), 4), layout="constrained")
    for axis, (title, (values, growth)) in zip(np.atleast_1d(axes), panels.items(), strict=True):
        axis.plot(iterations, values, ".", markersize=2)
        axis.axvline(start, color="gray", linestyle=":", label=f"judged from iteration {start}")
        axis.set(xlabel="iteration", ylabel=title, ylim=(0, 1.1 * values.max()))
        interval = f"{growth.low:+.2f} to {growth.high:+.2f}"
        axis.set_title(
            f"{growth.rate:+.2f} ({interval}) per 1000 iterations, limit {growth.limit:g}"
        )
        axis.grid(alpha=0.3)
        axis.legend(loc="lower right")
    return figure
