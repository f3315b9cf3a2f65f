"""The growth of a probed quantity in failing runs against sound runs: of the same rate, or of another rate if told."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from trimtab.kinds.max_lr.series import FOLLOWED, Floats, Series
from trimtab.stats.comparison import holm
from trimtab.stats.intervals import Welch, welch

DOUBLE = 2.0
SLOPE_STEPS = 100  # a slope is stated per this number of steps
NOT_KNOWN = Welch(math.nan, math.nan, math.nan, math.nan, math.nan)
Doubled = Literal["yes", "no", "not clear"]


@dataclass(frozen=True, slots=True)
class Growth:
    """A quantity in failing runs against sound runs, in the layer where their ratio is largest.

    Attributes:
        ratio, low, high: ratio of the geometric means at the last step that all runs have, with a 95 % interval by
            Welch's method on logarithms; the ends are None if a group has one run.
        p_double: p-value of the hypothesis that the ratio is 2, corrected by Holm's method over the outputs of the
            linear layers, or over the other quantities; None if a group has one run.
        doubled: whether the ratio is above 2 (``yes``) or below 2 (``no``), at 5 %.
        slope, slope_sound: mean growth per 100 steps after warm-up in failing and in sound runs, in octaves; None if a
            value is not positive.
        difference, difference_low, difference_high: difference of the two, with a 95 % interval.
    """

    quantity: str
    place: str
    failing: int
    sound: int
    ratio: float
    low: float | None
    high: float | None
    p_double: float | None
    doubled: Doubled
    slope: float | None
    slope_sound: float | None
    difference: float | None
    difference_low: float | None
    difference_high: float | None


def growth_of(failing: Sequence[Series], sound: Sequence[Series], after: int) -> list[Growth]:
    """Return the growth of every followed quantity that all runs have with positive values.

    Args:
        failing: the failing runs.
        sound: the sound runs.
        after: the number of warm-up steps, which slopes leave out.
    """
    last = min(int(run.steps[-1]) for run in (*failing, *sound))
    found: list[Growth] = []
    for quantity in FOLLOWED:
        places = set.intersection(*(set(run.values.get(quantity, {})) for run in (*failing, *sound)))
        grown = [g for place in sorted(places) if (g := _at(quantity, place, failing, sound, after, last)) is not None]
        if grown:
            found.append(max(grown, key=lambda growth: growth.ratio))
    outputs = [growth for growth in found if growth.quantity.endswith("_output/*/l2_norm")]
    others = [growth for growth in found if growth not in outputs]
    return [*_corrected(outputs), *_corrected(others)]


def _at(
    quantity: str, place: str, failing: Sequence[Series], sound: Sequence[Series], after: int, last: int
) -> Growth | None:
    ends = [[_end(run, quantity, place, last) for run in group] for group in (failing, sound)]
    if not all(end > 0 and math.isfinite(end) for group in ends for end in group):
        return None
    logs = [[math.log2(end) for end in group] for group in ends]
    ratio = welch(logs[0], logs[1], hypothesis=math.log2(DOUBLE))
    slopes = [[_slope(run, quantity, place, after, last) for run in group] for group in (failing, sound)]
    means = [float(np.mean(group)) for group in slopes]
    difference = welch(slopes[0], slopes[1]) if all(math.isfinite(mean) for mean in means) else NOT_KNOWN
    return Growth(
        quantity=quantity,
        place=place,
        failing=len(failing),
        sound=len(sound),
        ratio=2.0**ratio.difference,
        low=_known(float(np.exp2(ratio.low))),
        high=_known(float(np.exp2(ratio.high))),
        p_double=_known(ratio.p_value),
        doubled="not clear",
        slope=_known(means[0]),
        slope_sound=_known(means[1]),
        difference=_known(difference.difference),
        difference_low=_known(difference.low),
        difference_high=_known(difference.high),
    )


def _end(run: Series, quantity: str, place: str, last: int) -> float:
    values = run.values[quantity][place][run.steps <= last]
    return float(values[-1]) if len(values) else math.nan


def _slope(run: Series, quantity: str, place: str, after: int, last: int) -> float:
    """Least-squares slope of log2 of the quantity over the steps from ``after`` on; nan if a value is not positive."""
    inside = (run.steps >= after) & (run.steps <= last)
    values: Floats = run.values[quantity][place][inside]
    steps = run.steps[inside].astype(np.float64)
    if len(values) < 2 or not (np.isfinite(values) & (values > 0)).all():
        return math.nan
    centred = steps - steps.mean()
    return float(centred @ np.log2(values) / (centred @ centred)) * SLOPE_STEPS


def _corrected(found: Sequence[Growth]) -> list[Growth]:
    p_values = {growth.quantity: growth.p_double for growth in found if growth.p_double is not None}
    adjusted = holm(p_values)
    corrected: list[Growth] = []
    for growth in found:
        p = adjusted.get(growth.quantity)
        shown = p is not None and p < 0.05
        doubled: Doubled = "not clear" if not shown else "yes" if growth.ratio > DOUBLE else "no"
        corrected.append(replace(growth, p_double=p, doubled=doubled))
    return corrected


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
