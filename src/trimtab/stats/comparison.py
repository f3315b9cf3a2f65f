"""Two arms against each other: the ratio of their limits, p-values, Holm's correction, the smallest visible shift."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from trimtab.stats.posterior import EdgePosterior, Floats, grid_quantiles

INTERVAL = (0.025, 0.5, 0.975)


@dataclass(frozen=True, slots=True)
class Difference:
    """A difference of two limits in octaves (log2 of their ratio): posterior median, 95 % interval, p-value."""

    median: float
    low: float
    high: float
    p_value: float


def difference(arm: EdgePosterior, baseline: EdgePosterior, level: float = 0.5) -> Difference:
    """Limit of ``arm`` minus that of ``baseline``, both held inside the tested range; p = 2 min(P(<0), P(>0))."""
    grid = arm.x50
    spread = np.convolve(clipped_density(arm, level), clipped_density(baseline, level)[::-1])
    step = grid[1] - grid[0]
    octaves = np.arange(-(len(grid) - 1), len(grid)) * step
    low, median, high = grid_quantiles(octaves, spread, INTERVAL)
    tie = spread[len(grid) - 1] / 2
    below, above = spread[: len(grid) - 1].sum() + tie, spread[len(grid) :].sum() + tie
    return Difference(float(median), float(low), float(high), float(min(1.0, 2 * min(below, above))))


def clipped_density(posterior: EdgePosterior, level: float) -> Floats:
    """The density with what lies outside the tested range moved to its end: nothing beyond it is claimed."""
    density, grid = posterior.density(level), posterior.x50
    inside = (grid >= posterior.low) & (grid <= posterior.high)
    clipped = np.where(inside, density, 0.0)
    first, last = np.flatnonzero(inside)[[0, -1]]
    clipped[first] += density[:first].sum()
    clipped[last] += density[last + 1 :].sum()
    return clipped


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's adjusted p-values; NaN is refused.

    Raises:
        ValueError: if a p-value is outside 0 to 1.
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
    """Shift in octaves that such posteriors would show, with power 0.8, by a 95 % interval that excludes 0."""
    variance = sum(_variance(p.x50, clipped_density(p, level)) for p in (arm, baseline))
    return (1.96 + 0.84) * math.sqrt(variance)


def _variance(grid: Floats, density: Floats) -> float:
    mean = float(grid @ density)
    return float((grid - mean) ** 2 @ density)
