"""Cumulative distribution function and quantiles of Student's t, for integer and fractional degrees of freedom."""

from __future__ import annotations

import math
from functools import cache

import numpy as np

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)


def t_cdf(t: float, degrees: float) -> float:
    """Cumulative distribution function: the probability of a value below ``t``.

    Raises:
        ValueError: if degrees is below 1.
    """
    if degrees < 1:
        raise ValueError(f"degrees of freedom must be at least 1, got {degrees}")
    if math.isinf(degrees):
        return 0.5 * math.erfc(-t / math.sqrt(2))
    # The substitution t = sqrt(n) tan(a) turns the density into a power of a cosine over a finite range.
    angle = math.atan2(abs(t), math.sqrt(degrees))
    powers = np.cos((angle / 2) * (_NODES + 1)) ** (degrees - 1)
    norm = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(math.pi)
    half = norm * float(_WEIGHTS @ powers) * angle / 2
    return min(1.0, 0.5 + half) if t >= 0 else max(0.0, 0.5 - half)


@cache
def t_quantile(probability: float, degrees: float) -> float:
    """Quantile function: the value below which ``probability`` of the distribution lies.

    Raises:
        ValueError: if probability is not between 0 and 1, or degrees is below 1.
    """
    if not 0 < probability < 1:
        raise ValueError(f"probability must lie between 0 and 1, got {probability}")
    if probability < 0.5:
        return -t_quantile(1 - probability, degrees)
    low, high = 0.0, 1.0
    while t_cdf(high, degrees) < probability:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, degrees) < probability else (low, middle)
    return (low + high) / 2
