"""Comparison of two arms: the ratio of their limits, p-values, Holm's correction, the smallest detectable shift."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from trimtab.stats.posterior import EdgePosterior, Floats, grid_quantiles

INTERVAL = (0.025, 0.5, 0.975)


@dataclass(frozen=True, slots=True)
class Difference:
    """Difference of two limits in octaves (log2 of their ratio): posterior median, 95 % interval and p-value."""

    median: float
    low: float
    high: float
    p_value: float


def difference(arm: EdgePosterior, baseline: EdgePosterior, level: float = 0.5) -> Difference:
    """Limit of ``arm`` minus limit of ``baseline``, each clipped to the tested range.

    The p-value is 2 min(P(difference < 0), P(difference > 0)), of the limits before they are clipped, because arms may
    have different ranges.
    """
    grid = arm.x50
    spread = np.convolve(clipped_density(arm, level), clipped_density(baseline, level)[::-1])
    step = grid[1] - grid[0]
    octaves = np.arange(-(len(grid) - 1), len(grid)) * step
    low, median, high = grid_quantiles(octaves, spread, INTERVAL)
    above = probability_above(arm, baseline, level)
    return Difference(float(median), float(low), float(high), min(1.0, 2 * min(above, 1 - above)))


def probability_above(arm: EdgePosterior, other: EdgePosterior, level: float = 0.5) -> float:
    """Posterior probability that the limit of ``arm`` is above that of ``other``; a tie counts half."""
    density, others = arm.density(level), other.density(level)
    below = np.cumsum(others) - others / 2
    return float(np.clip(density @ below, 0.0, 1.0))


def clipped_density(posterior: EdgePosterior, level: float) -> Floats:
    """Density of the limit, clipped to the tested range.

    Probability outside the range is moved to the nearer end of the range, so no limit beyond it is reported.
    """
    density, grid = posterior.density(level), posterior.x50
    inside = (grid >= posterior.low) & (grid <= posterior.high)
    clipped = np.where(inside, density, 0.0)
    first, last = np.flatnonzero(inside)[[0, -1]]
    clipped[first] += density[:first].sum()
    clipped[last] += density[last + 1 :].sum()
    return clipped


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """P-values adjusted by Holm's method.

    Raises:
        ValueError: if a p-value is NaN or outside 0 to 1.
    """
    if not all(0 <= p <= 1 for p in p_values.values()):
        raise ValueError("p-values must lie between 0 and 1")
    adjusted: dict[str, float] = {}
    largest = 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p))
        adjusted[name] = largest
    return adjusted


def smallest_visible_shift(arm: EdgePosterior, baseline: EdgePosterior, level: float = 0.5) -> float:
    """Smallest detectable shift, in octaves.

    For a true shift of this size the 95 % interval excludes 0 with power 0.8, given posteriors of these variances.
    """
    variance = sum(_variance(p.x50, clipped_density(p, level)) for p in (arm, baseline))
    return (1.96 + 0.84) * math.sqrt(variance)


def _variance(grid: Floats, density: Floats) -> float:
    mean = float(grid @ density)
    return float((grid - mean) ** 2 @ density)
