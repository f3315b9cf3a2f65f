"""Intervals for small samples: the mean over seeds, and a share of successes."""

from __future__ import annotations

import math
from collections.abc import Sequence

# Two-sided 95 % quantiles of Student's t for 1 to 30 degrees of freedom.
_T975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95 % Student interval; the interval is nan with fewer than two values."""
    n = len(values)
    if n == 0:
        return math.nan, math.nan, math.nan
    mean = sum(values) / n
    if n == 1:
        return mean, math.nan, math.nan
    sd = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    half = (_T975[n - 2] if n - 2 < len(_T975) else 1.96 + 2.372 / (n - 1)) * sd / math.sqrt(n)
    return mean, mean - half, mean + half


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """95 % Wilson interval of a share; (0, 1) without trials."""
    if trials == 0:
        return 0.0, 1.0
    z2 = 1.96**2
    centre = (successes + z2 / 2) / (trials + z2)
    half = 1.96 / (trials + z2) * math.sqrt(successes * (trials - successes) / trials + z2 / 4)
    return max(0.0, centre - half), min(1.0, centre + half)


def pooled_sd(groups: Sequence[Sequence[float]]) -> float:
    """Standard deviation within groups, pooled; nan if no group has two values."""
    degrees = sum(len(group) - 1 for group in groups)
    if degrees < 1:
        return math.nan
    squares = sum((value - sum(group) / len(group)) ** 2 for group in groups for value in group)
    return math.sqrt(squares / degrees)
