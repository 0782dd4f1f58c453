"""Growth of a quantity, such as memory, during a run: estimate and figure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from aid.utils.errors import AIDError
from aid.utils.text import counted

__all__ = ["Growth", "draw_growth", "measure_growth", "place_in_time", "slope"]

plt.switch_backend("Agg")  # no display is needed

MIN_SAMPLES = 10
# Maximum number of samples for the slope, whose cost is quadratic.
MAX_SAMPLES = 1000


@dataclass(frozen=True)
class Growth:
    """Growth of a quantity during a run.

    Attributes:
        rate: slope of the line through the samples, per 1000 iterations.
        low: lower end of the 95 % confidence interval of the rate, assuming independent samples.
        high: upper end of that interval.
        limit: maximum rate that does not count as growth.
        last: median of the last tenth of the samples.
        samples: number of samples.
    """

    rate: float
    low: float
    high: float
    limit: float
    last: float
    samples: int

    @property
    def is_flat(self) -> bool:
        """Whether the rate is within the limit with 95 % confidence."""
        return self.high <= self.limit

    @property
    def is_growing(self) -> bool:
        """Whether the rate is above the limit with 95 % confidence; a short run may be neither."""
        return self.low > self.limit


def slope(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Theil-Sen slope: the median of the slopes of all pairs of points.

    Unlike least squares, it is robust against peaks, such as while a checkpoint is written, in up
    to 29 % of the points.

    Args:
        x: (N,), not constant, N at least 2.
        y: (N,).

    Returns:
        The slope, and the ends of its 95 % confidence interval (Sen, JASA 1968).
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
    """Interpolate the iteration of every sample between the logged iterations.

    Args:
        seconds: (N,), times of the samples.
        logged: (N,), last logged iteration at each sample.

    Returns:
        (N,), iterations.
    """
    iterations, first = np.unique(logged, return_index=True)
    return np.interp(seconds, np.asarray(seconds)[first], iterations)


def measure_growth(
    iterations: np.ndarray, values: np.ndarray, start: int, end: int, limit: float
) -> Growth:
    """Estimate the growth of a quantity from its samples in iterations [start, end).

    Args:
        iterations: (N,), iterations of the samples.
        values: (N,), the samples.
        start: first iteration after the warm-up.
        end: end of the training iterations.
        limit: maximum rate per 1000 iterations that does not count as growth.

    Raises:
        AIDError: too few samples.
    """
    counts = (iterations >= start) & (iterations < end)
    if counts.sum() < MIN_SAMPLES:
        raise AIDError(
            f"{counted(counts.sum(), 'sample')} between iteration {start} and {end}, too few to "
            "measure growth: raise SOLVER.MAX_ITER, or lower --from-iteration or --interval"
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
    """Draw the samples over the iterations, one panel per quantity.

    Args:
        iterations: (N,), iterations of the samples.
        panels: {title: (values (N,), their growth)}.
        start: first iteration of the measurement.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(6 * len(panels), 4), layout="constrained")
    for axis, (title, (values, growth)) in zip(np.atleast_1d(axes), panels.items(), strict=True):
        axis.plot(iterations, values, ".", markersize=2)
        axis.axvline(start, color="gray", linestyle=":", label=f"measured from iteration {start}")
        axis.set(xlabel="iteration", ylabel=title, ylim=(0, 1.1 * values.max()))
        interval = f"{growth.low:+.2f} to {growth.high:+.2f}"
        axis.set_title(
            f"{growth.rate:+.2f} ({interval}) per 1000 iterations, limit {growth.limit:g}"
        )
        axis.grid(alpha=0.3)
        axis.legend(loc="lower right")
    return figure
