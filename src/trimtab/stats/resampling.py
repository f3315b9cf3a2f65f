"""Bootstrap over runs: resampling counts, and a percentile interval corrected for small samples."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from trimtab.stats.student import t_cdf, t_quantile

Floats = NDArray[np.float64]
RESAMPLES = 1000
POWER = 0.8
LEAST_UNITS = 3


def ordered(names: Iterable[Hashable]) -> list[Hashable]:
    """The distinct names in a fixed order, so that a bootstrap does not depend on the order of its input."""
    return sorted(set(names), key=lambda name: (type(name).__name__, repr(name)))


@lru_cache(maxsize=32)
def multiplicities(units: int, resamples: int, seed: int = 0) -> Floats:
    """Number of times that each unit is drawn in each resample, (resamples, units); not to be written to."""
    if units == 0:
        return np.zeros((resamples, 0))
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(units, np.full(units, 1 / units), size=resamples).astype(float)
    drawn.flags.writeable = False
    return drawn


def expanded_interval(values: Floats, units: int) -> tuple[float, float, float]:
    """95 % expanded percentile interval, and the smallest effect that data of this variance detect with power 0.8.

    The percentile interval of few units is too narrow, so its level is raised to match Student's t (Hesterberg, 2015,
    section 5.3). All results are nan for fewer than 3 units, or if fewer than half of the resamples are finite.

    Args:
        values: the statistic of each resample; non-finite values are left out.
        units: number of units that were resampled.

    Returns:
        low, high, and the smallest detectable effect.
    """
    sound = values[np.isfinite(values)]
    if units < LEAST_UNITS or len(sound) < len(values) / 2:
        return math.nan, math.nan, math.nan
    wide = t_quantile(0.975, units - 1) * math.sqrt(units / (units - 1))
    level = t_cdf(wide, math.inf)
    low, high = np.quantile(sound, [1 - level, level])
    error = float(sound.std()) * math.sqrt(units / (units - 1))
    visible = (t_quantile(0.975, units - 1) + t_quantile(POWER, units - 1)) * error
    return float(low), float(high), visible
