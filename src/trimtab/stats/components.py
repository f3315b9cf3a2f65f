"""Variance components of a two-way table, with intervals, and outliers among runs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimtab.stats.student import t_quantile

DRAWS = 20_000
ROUNDING = 1e-14  # relative to the largest value; smaller differences are rounding errors and count as 0


@dataclass(frozen=True, slots=True)
class Component:
    """A variance and its share of the total variance, each with a 95 % interval. No value is negative."""

    variance: float
    low: float
    high: float
    share: float
    share_low: float
    share_high: float


@dataclass(frozen=True, slots=True)
class Components:
    """Variance components of the rows, of the columns, and of the residual of each cell."""

    rows: Component
    columns: Component
    rest: Component


def two_way_components(table: NDArray[np.float64], seed: int = 0) -> Components:
    """Variance components of a random-effects model for a complete table (rows, columns) with one value per cell.

    Point estimates are those of the analysis of variance, clipped at 0. Intervals are generalised confidence
    intervals (Weerahandi, 1993), for which the three mean squares are drawn from their chi-squared distributions.

    Raises:
        ValueError: if there are fewer than 2 rows or columns, or a value is not finite.
    """
    if min(table.shape) < 2 or not np.isfinite(table).all():
        raise ValueError("variance components need a complete table of at least 2 rows and 2 columns")
    rows, columns = table.shape
    of_rows = table.mean(1)
    of_columns = table.mean(0)
    mean = table.mean()
    squares = np.array(
        [
            columns * ((of_rows - mean) ** 2).sum(),
            rows * ((of_columns - mean) ** 2).sum(),
            ((table - of_rows[:, None] - of_columns[None, :] + mean) ** 2).sum(),
        ]
    )
    squares[squares <= (ROUNDING * np.abs(table).max()) ** 2 * table.size] = 0.0
    freedom = np.array([rows - 1, columns - 1, (rows - 1) * (columns - 1)])
    point = _variances(squares / freedom, rows, columns)
    drawn = squares / np.random.default_rng(seed).chisquare(freedom, size=(DRAWS, 3))
    draws = np.stack(_variances(drawn.T, rows, columns))
    shares = draws / np.maximum(draws.sum(0), 1e-300)
    total = max(float(np.sum(point)), 1e-300)
    components: list[Component] = []
    for index in range(3):
        low, high = (float(value) for value in np.quantile(draws[index], [0.025, 0.975]))
        share_low, share_high = (float(value) for value in np.quantile(shares[index], [0.025, 0.975]))
        variance = float(point[index])
        components.append(Component(variance, low, high, variance / total, share_low, share_high))
    return Components(*components)


def _variances(
    mean_squares: NDArray[np.float64], rows: int, columns: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    of_rows, of_columns, rest = mean_squares
    return np.maximum(0, (of_rows - rest) / columns), np.maximum(0, (of_columns - rest) / rows), rest * 1.0


def outlier_scores(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance of each value from the mean, in standard deviations.

    A non-finite value gets the score infinity and is left out of the mean and of the standard deviation. Among n
    values no finite score exceeds (n - 1) / sqrt(n), which is 1.79 for 5 runs.
    """
    sound = np.isfinite(values)
    scores = np.full(len(values), math.inf)
    if sound.sum() >= 2:
        deviation = float(values[sound].std(ddof=1))
        alike = deviation <= ROUNDING * float(np.abs(values[sound]).max())
        scores[sound] = 0.0 if alike else (values[sound] - values[sound].mean()) / deviation
    return scores


def grubbs_limit(count: int, level: float = 0.05) -> float:
    """Critical value of Grubbs' two-sided test for one outlier.

    The most extreme of ``count`` normal values exceeds this score with probability ``level``. Infinite for a count
    below 3.
    """
    if count < 3:
        return math.inf
    t = t_quantile(1 - level / (2 * count), count - 2)
    return (count - 1) / math.sqrt(count) * math.sqrt(t**2 / (count - 2 + t**2))
