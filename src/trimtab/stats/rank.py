"""Rank correlation: Kendall's tau-b, and Spearman's rho within strata with an interval over independent units."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimtab.stats.resampling import RESAMPLES, expanded_interval, multiplicities, ordered

Floats = NDArray[np.float64]
LEAST_IN_STRATUM = 3


@dataclass(frozen=True, slots=True)
class Correlation:
    """A rank correlation with its 95 % interval over units, such as seeds; nan where there are too few data.

    Attributes:
        units: number of independent units; of two crossed factors, that of the one with fewer levels.
        strata: number of strata used.
        visible: smallest correlation that data of this variance detect with power 0.8.
    """

    estimate: float
    low: float
    high: float
    units: int
    strata: int
    visible: float


def kendall_tau_b(first: Sequence[float], second: Sequence[float]) -> float:
    """Kendall's tau-b, which corrects for ties: 1 for the same order, -1 for the reverse order.

    The value is nan if all values of one sequence are equal.

    Raises:
        ValueError: if the lengths differ.
    """
    if len(first) != len(second):
        raise ValueError(f"lengths differ: {len(first)} and {len(second)}")
    a, b = np.asarray(first, float), np.asarray(second, float)
    upper = np.triu_indices(len(a), 1)
    sign_a = np.sign(a[:, None] - a)[upper]
    sign_b = np.sign(b[:, None] - b)[upper]
    scale = np.sqrt((sign_a**2).sum() * (sign_b**2).sum())
    return float((sign_a * sign_b).sum() / scale) if scale else float("nan")


def spearman(first: Sequence[float] | Floats, second: Sequence[float] | Floats) -> float:
    """Spearman's rho, with mean ranks for ties.

    The value is nan if all values of one sequence are equal, or a value is not finite.

    Raises:
        ValueError: if the lengths differ.
    """
    a, b = np.asarray(first, float), np.asarray(second, float)
    if len(a) != len(b):
        raise ValueError(f"lengths differ: {len(a)} and {len(b)}")
    if not (np.isfinite(a) & np.isfinite(b)).all():
        return float("nan")
    products, squares_a, squares_b = _within(a, b, np.ones((1, len(a))))
    scale = float(np.sqrt(squares_a * squares_b)[0])
    return float(products[0]) / scale if scale else float("nan")


def stratified_spearman(
    first: Sequence[float] | Floats,
    second: Sequence[float] | Floats,
    strata: Sequence[Hashable],
    units: Sequence[Hashable],
    crossed: Sequence[Hashable] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Correlation:
    """Spearman's rho within strata, pooled over the strata.

    Ranks are taken inside each stratum, as shares of its size. If the strata are the cells of a set of variables, the
    result is the partial rank correlation given these variables, without a model of their effect. The interval
    resamples whole units, so the rows of one unit may be dependent in any way. With ``crossed`` it resamples the levels
    of two factors, each on its own (Owen, 2007), so rows may share either.

    Args:
        first: one value per row; a row with a non-finite value is left out.
        second: one value per row, as ``first``.
        strata: the stratum of each row; strata with fewer than 3 rows are left out.
        units: the unit of each row, such as the seed of its run.
        crossed: the level of a second factor of each row, such as its arm; a factor with one level is not resampled.
        resamples: number of bootstrap resamples.
        seed: seed of the bootstrap.

    Raises:
        ValueError: if the lengths differ.
    """
    a, b = np.asarray(first, float), np.asarray(second, float)
    if {len(b), len(strata), len(units), len(units if crossed is None else crossed)} != {len(a)}:
        raise ValueError(f"lengths differ: {len(a)}, {len(b)}, {len(strata)} and {len(units)}")
    sound = np.isfinite(a) & np.isfinite(b)
    members: dict[Hashable, list[int]] = {}
    for row in np.flatnonzero(sound).tolist():
        members.setdefault(strata[row], []).append(row)
    cells = [np.array(rows) for rows in members.values() if len(rows) >= LEAST_IN_STRATUM]
    used = [row for rows in cells for row in rows.tolist()]
    factors = [_Factor.of([units[row] for row in used], resamples, seed)]
    if crossed is not None and len({crossed[row] for row in used}) > 1:
        factors.append(_Factor.of([crossed[row] for row in used], resamples, seed + 1))
    sums = np.zeros((3, resamples + 1))
    for rows in cells:
        row_weights = factors[0].weights_of([units[row] for row in rows])
        for factor in factors[1:]:
            assert crossed is not None
            row_weights = row_weights * factor.weights_of([crossed[row] for row in rows])
        sums += np.stack(_within(a[rows], b[rows], row_weights))
    scale = np.sqrt(sums[1] * sums[2])
    rho = np.divide(sums[0], scale, out=np.full(len(scale), np.nan), where=scale > 0)
    rho = np.clip(rho, -1.0, 1.0)  # rounding errors can exceed the bounds
    levels = min(len(factor.place) for factor in factors)
    low, high, visible = expanded_interval(rho[1:], levels)
    return Correlation(float(rho[0]), low, high, levels, len(cells), visible)


def mean_correlation(
    correlations: Sequence[float] | Floats,
    units: Sequence[Hashable] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Correlation:
    """Mean of one correlation per run, with an interval that resamples units; non-finite values are left out.

    Args:
        correlations: one value per run.
        units: the unit of each run, such as its seed; by default each run is a unit.
        resamples: number of bootstrap resamples.
        seed: seed of the bootstrap.

    Raises:
        ValueError: if the lengths differ.
    """
    values = np.asarray(correlations, float)
    units = range(len(values)) if units is None else units
    if len(values) != len(units):
        raise ValueError(f"lengths differ: {len(values)} and {len(units)}")
    sound = np.flatnonzero(np.isfinite(values)).tolist()
    if not sound:
        return Correlation(np.nan, np.nan, np.nan, 0, 0, np.nan)
    values = values[sound]
    used = [units[run] for run in sound]
    factor = _Factor.of(used, resamples, seed)
    weights = factor.weights_of(used)
    means = weights @ values / weights.sum(1)
    low, high, visible = expanded_interval(means[1:], len(factor.place))
    return Correlation(float(means[0]), low, high, len(factor.place), len(values), visible)


@dataclass(frozen=True, slots=True)
class _Factor:
    """The levels of a factor, and how often each is drawn: once in the first row, then in every resample."""

    place: Mapping[Hashable, int]
    counts: Floats

    @classmethod
    def of(cls, levels: Sequence[Hashable], resamples: int, seed: int) -> _Factor:
        names = ordered(levels)
        drawn = multiplicities(len(names), resamples, seed)
        place = {name: index for index, name in enumerate(names)}
        return cls(place, np.concatenate([np.ones((1, len(names))), drawn]))

    def weights_of(self, levels: Sequence[Hashable]) -> Floats:
        """The weight of each row in each resample, (resamples + 1, rows)."""
        return self.counts[:, [self.place[level] for level in levels]]


def _within(a: Floats, b: Floats, weights: Floats) -> tuple[Floats, Floats, Floats]:
    """Weighted sums of products and squares of centred ranks over one stratum, for each row of ``weights`` (B, N)."""
    total = weights.sum(1)
    safe = np.where(total > 0, total, 1.0)

    def ranks(x: Floats) -> Floats:
        # below[j, i] is 1 if value j is below value i, and 1/2 if the two are tied.
        below = (x[:, None] < x[None, :]) + 0.5 * (x[:, None] == x[None, :])
        ranked = weights @ below / safe[:, None]
        return ranked - ((ranked * weights).sum(1) / safe)[:, None]

    rank_a, rank_b = ranks(a), ranks(b)
    return (weights * rank_a * rank_b).sum(1), (weights * rank_a**2).sum(1), (weights * rank_b**2).sum(1)
