"""Rank correlation: Kendall's tau-b, and Spearman's rho within strata with an interval over runs."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimtab.stats.resampling import RESAMPLES, expanded_interval, multiplicities, ordered

Floats = NDArray[np.float64]
LEAST_IN_STRATUM = 3


@dataclass(frozen=True, slots=True)
class Correlation:
    """A rank correlation with its 95 % interval over runs; nan where there are too few data.

    Attributes:
        runs: number of runs used.
        strata: number of strata used.
        visible: smallest correlation that data of this variance detect with power 0.8.
    """

    estimate: float
    low: float
    high: float
    runs: int
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
    runs: Sequence[Hashable],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Correlation:
    """Spearman's rho within strata, pooled over the strata.

    Ranks are taken inside each stratum, as shares of its size. If the strata are the cells of a set of variables, the
    result is the partial rank correlation given these variables, without a model of their effect. The interval
    resamples whole runs, so the rows of one run may be dependent in any way.

    Args:
        first: one value per row; a row with a non-finite value is left out.
        second: one value per row, as ``first``.
        strata: the stratum of each row; strata with fewer than 3 rows are left out.
        runs: the run of each row.
        resamples: number of bootstrap resamples.
        seed: seed of the bootstrap.

    Raises:
        ValueError: if the lengths differ.
    """
    a, b = np.asarray(first, float), np.asarray(second, float)
    if {len(b), len(strata), len(runs)} != {len(a)}:
        raise ValueError(f"lengths differ: {len(a)}, {len(b)}, {len(strata)} and {len(runs)}")
    sound = np.isfinite(a) & np.isfinite(b)
    members: dict[Hashable, list[int]] = {}
    for row in np.flatnonzero(sound).tolist():
        members.setdefault(strata[row], []).append(row)
    cells = [np.array(rows) for rows in members.values() if len(rows) >= LEAST_IN_STRATUM]
    used = ordered(runs[row] for rows in cells for row in rows.tolist())
    place = {run: index for index, run in enumerate(used)}
    counts = multiplicities(len(used), resamples, seed)
    weights = np.concatenate([np.ones((1, len(used))), counts]) if used else np.ones((1, 0))
    sums = np.zeros((3, len(weights)))
    for rows in cells:
        row_weights = weights[:, [place[runs[row]] for row in rows]]
        sums += np.stack(_within(a[rows], b[rows], row_weights))
    scale = np.sqrt(sums[1] * sums[2])
    rho = np.divide(sums[0], scale, out=np.full(len(scale), np.nan), where=scale > 0)
    rho = np.clip(rho, -1.0, 1.0)  # rounding errors can exceed the bounds
    low, high, visible = expanded_interval(rho[1:], len(used))
    return Correlation(float(rho[0]), low, high, len(used), len(cells), visible)


def mean_correlation(
    correlations: Sequence[float] | Floats, *, resamples: int = RESAMPLES, seed: int = 0
) -> Correlation:
    """Mean of one correlation per run, with an interval that resamples runs; non-finite values are left out."""
    values = np.asarray(correlations, float)
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return Correlation(np.nan, np.nan, np.nan, 0, 0, np.nan)
    counts = multiplicities(len(values), resamples, seed)
    low, high, visible = expanded_interval(counts @ values / len(values), len(values))
    return Correlation(float(values.mean()), low, high, len(values), len(values), visible)


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
