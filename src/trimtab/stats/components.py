"""Variance components of a two-way table, with intervals, and outliers among runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from trimtab.stats.student import t_quantile

DRAWS = 20_000
ENDS = (0.025, 0.975)
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
    """Variance components of the rows, of the columns, and of the residual of each cell.

    Attributes:
        rest: the residual: the interaction of rows and columns and the variance within a cell, which a table with one
            value per cell cannot tell apart.
        numerics: the variance within a cell, from cells that were repeated; None without repeats.
        interaction: ``rest`` without ``numerics``; None without repeats.
        p_interaction: p-value of the F-test of the residual against the variance within a cell; None without repeats.
        repeats: number of cells that were repeated.
    """

    rows: Component
    columns: Component
    rest: Component
    numerics: Component | None = None
    interaction: Component | None = None
    p_interaction: float | None = None
    repeats: int = 0


def two_way_components(
    table: NDArray[np.float64], repeated: Sequence[tuple[float, float]] = (), seed: int = 0
) -> Components:
    """Variance components of a random-effects model for a complete table (rows, columns) with one value per cell.

    Point estimates are those of the analysis of variance, clipped at 0. Intervals are generalised confidence
    intervals (Weerahandi, 1993), for which the mean squares are drawn from their chi-squared distributions.

    Args:
        table: the values.
        repeated: for each cell that was repeated, its two values. They give the variance within a cell.
        seed: of the draws.

    Raises:
        ValueError: if there are fewer than 2 rows or columns, or a value is not finite.
    """
    if not all(math.isfinite(value) for pair in repeated for value in pair):
        raise ValueError("the values of repeated cells must be finite")
    if min(table.shape) < 2 or not np.isfinite(table).all():
        raise ValueError("variance components need a complete table of at least 2 rows and 2 columns")
    rows, columns = table.shape
    row_means = table.mean(1)
    column_means = table.mean(0)
    mean = table.mean()
    squares = np.array(
        [
            columns * ((row_means - mean) ** 2).sum(),
            rows * ((column_means - mean) ** 2).sum(),
            ((table - row_means[:, None] - column_means[None, :] + mean) ** 2).sum(),
        ]
    )
    squares[squares <= (ROUNDING * np.abs(table).max()) ** 2 * table.size] = 0.0
    freedom = np.array([rows - 1, columns - 1, (rows - 1) * (columns - 1)])
    point = np.stack(_variances(squares / freedom, rows, columns))
    rng = np.random.default_rng(seed)
    drawn = squares / rng.chisquare(freedom, size=(DRAWS, 3))
    draws = np.stack(_variances(drawn.T, rows, columns))
    total = max(float(point.sum()), 1e-300)
    totals = np.maximum(draws.sum(0), 1e-300)

    def component(variance: float, of_draws: NDArray[np.float64]) -> Component:
        low, high = (float(value) for value in np.quantile(of_draws, ENDS))
        share_low, share_high = (float(value) for value in np.quantile(np.minimum(1.0, of_draws / totals), ENDS))
        return Component(variance, low, high, min(1.0, variance / total), share_low, share_high)

    of_rows, of_columns, of_rest = (component(float(point[index]), draws[index]) for index in range(3))
    components = Components(of_rows, of_columns, of_rest)
    if not repeated:
        return components
    inside = [(one - other) ** 2 / 2 for one, other in repeated]  # a difference has twice the variance of a value
    numerics = math.fsum(inside) / len(inside)
    of_numerics = math.fsum(inside) / rng.chisquare(len(inside), size=DRAWS)
    rest = float(point[2])
    by_chance = (rng.chisquare(freedom[2], DRAWS) / freedom[2]) / (rng.chisquare(len(inside), DRAWS) / len(inside))
    above = int((by_chance * numerics >= rest).sum())
    return replace(
        components,
        numerics=component(numerics, of_numerics),
        interaction=component(max(0.0, rest - numerics), np.maximum(0.0, draws[2] - of_numerics)),
        p_interaction=(above + 1) / (DRAWS + 1),
        repeats=len(inside),
    )


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
