"""The bootstrap over runs: how often each is drawn, and an interval that is honest for few of them."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable

import numpy as np
from numpy.typing import NDArray

from trimtab.stats.student import t_cdf, t_quantile

Floats = NDArray[np.float64]
RESAMPLES = 1000
POWER = 0.8
LEAST_UNITS = 3


def ordered(names: Iterable[Hashable]) -> list[Hashable]:
    """Each name once, in an order that does not depend on theirs: what is resampled must not either."""
    return sorted(set(names), key=lambda name: (type(name).__name__, repr(name)))


def multiplicities(units: int, resamples: int, seed: int = 0) -> Floats:
    """How often each unit is drawn in each resample, (resamples, units)."""
    if units == 0:
        return np.zeros((resamples, 0))
    rng = np.random.default_rng(seed)
    return rng.multinomial(units, np.full(units, 1 / units), size=resamples).astype(float)


def expanded_interval(values: Floats, units: int) -> tuple[float, float, float]:
    """95 % interval from resampled values, and the smallest effect that such data would show with power 0.8.

    A percentile interval is too narrow for few units; its level is raised to what Student's t asks for (Hesterberg,
    2015, section 5.3). nan for fewer than 3 units or where resamples have no value.

    Args:
        values: of the statistic, one a resample; nan ones are left out.
        units: that were resampled.
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
