"""Intervals for small samples: of a mean over seeds, and of a proportion."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from trimtab.stats.student import t_cdf, t_quantile

POWER = 0.8


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95 % interval by Student's t. The interval is nan with fewer than two values."""
    n = len(values)
    if n == 0:
        return math.nan, math.nan, math.nan
    mean = sum(values) / n
    if n == 1:
        return mean, math.nan, math.nan
    sd = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    half = t_quantile(0.975, n - 1) * sd / math.sqrt(n)
    return mean, mean - half, mean + half


def smallest_visible_mean(values: Sequence[float]) -> float:
    """Smallest mean that data with this spread tell from 0 with power 0.8, two-sided 5 %; nan below two values."""
    n = len(values)
    if n < 2:
        return math.nan
    mean = sum(values) / n
    error = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1) / n)
    return (t_quantile(0.975, n - 1) + t_quantile(POWER, n - 1)) * error


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """95 % Wilson interval of a proportion; (0, 1) if there are no trials."""
    if trials == 0:
        return 0.0, 1.0
    z2 = 1.96**2
    centre = (successes + z2 / 2) / (trials + z2)
    half = 1.96 / (trials + z2) * math.sqrt(successes * (trials - successes) / trials + z2 / 4)
    return max(0.0, centre - half), min(1.0, centre + half)


def pooled_sd(groups: Sequence[Sequence[float]]) -> float:
    """Pooled standard deviation within groups; nan if no group has two values."""
    degrees = sum(len(group) - 1 for group in groups)
    if degrees < 1:
        return math.nan
    squares = sum((value - sum(group) / len(group)) ** 2 for group in groups for value in group)
    return math.sqrt(squares / degrees)


@dataclass(frozen=True, slots=True)
class Welch:
    """A difference of two means by Welch's t-test. All but the difference is nan if a group has one value.

    Attributes:
        low, high: 95 % interval.
        p_value: two-sided, of the hypothesis that was given.
        visible: smallest difference from 0 that data of this variance detect with power 0.8.
    """

    difference: float
    low: float
    high: float
    p_value: float
    visible: float


def welch(one: Sequence[float], other: Sequence[float], hypothesis: float = 0.0) -> Welch:
    """Difference of the means of two independent groups, by Welch's t-test.

    Args:
        one: the values of the first group; at least one.
        other: the values of the second group; at least one.
        hypothesis: the difference whose p-value is computed.
    """
    means = [sum(group) / len(group) for group in (one, other)]
    difference = means[0] - means[1]
    if min(len(one), len(other)) < 2:
        return Welch(difference, math.nan, math.nan, math.nan, math.nan)
    errors = [
        sum((value - mean) ** 2 for value in group) / (len(group) - 1) / len(group)
        for group, mean in zip((one, other), means, strict=True)
    ]
    error = math.sqrt(sum(errors))
    if error == 0:
        return Welch(difference, difference, difference, float(difference == hypothesis), 0.0)
    shares = sum(e**2 / (len(group) - 1) for e, group in zip(errors, (one, other), strict=True))
    degrees = max(1.0, sum(errors) ** 2 / shares)
    half = t_quantile(0.975, degrees) * error
    p_value = 2 * (1 - t_cdf(abs(difference - hypothesis) / error, degrees))
    visible = half + t_quantile(POWER, degrees) * error
    return Welch(difference, difference - half, difference + half, p_value, visible)
