"""Centred isotonic regression of failure on log2 LR (Oron and Flournoy, 2017): a check on the model-based posterior."""

from __future__ import annotations

import numpy as np

from trimtab.stats.posterior import EdgeEvidence


def centred_isotonic_level(trials: EdgeEvidence, level: float = 0.5) -> float:
    """log2 LR at which the fitted failure rate crosses ``level``.

    The value is inf if the rate stays below ``level``, -inf if it stays above, and nan if there are no runs.
    """
    if len(trials.x) == 0:
        return float("nan")
    pools: list[list[float]] = []  # failures, runs, sum of x over the runs
    for x in np.unique(trials.x):
        here = trials.x == x
        pools.append([float(trials.failed[here].sum()), float(here.sum()), float(x * here.sum())])
        while len(pools) > 1 and _to_pool(pools[-2][0] / pools[-2][1], pools[-1][0] / pools[-1][1]):
            last = pools.pop()
            pools[-1] = [a + b for a, b in zip(pools[-1], last, strict=True)]
    rates = np.array([failures / runs for failures, runs, _ in pools])
    centres = np.array([total / runs for _, runs, total in pools])
    if rates[-1] < level:
        return float("inf")
    if rates[0] > level:
        return float("-inf")
    return float(np.interp(level, rates, centres))


def _to_pool(lower: float, upper: float) -> bool:
    # Flat stretches are pooled too, except at rates 0 and 1: there the edge lies at their end, not at their centre.
    return lower > upper or (lower == upper and 0 < lower < 1)
