"""Do early signals tell failing from sound runs? Area under the ROC curve, cross-validated so that nothing leaks.

Only pairs of a failing and a sound run of one stratum, such as a learning rate, are compared, so that the stratum
tells nothing. Which of the two looks worse is said by a model that was fitted to runs of other methods and other
seeds: leave one pair out, and all its twins.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimtab.stats.resampling import RESAMPLES, expanded_interval, multiplicities, ordered

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
RIDGE = 1.0  # a prior deviation of 1 for the log odds per standard deviation: with few pairs a sign, not a certainty
NEWTON_STEPS = 12


@dataclass(frozen=True, slots=True)
class Judged:
    """Every pair, and whether the failing run of it was found.

    Attributes:
        failing, sound: runs of each pair, (P,).
        won: 1 if the failing run looked worse, 0 if the sound one did, 1/2 for a tie, (P,).
        untrained: pairs for which no other methods and seeds were left to learn from; ties.
        method: of each run, by number, (N,).
        twin: of each run, the number of its method and seed together, (N,).
    """

    failing: Integers
    sound: Integers
    won: Floats
    untrained: int
    method: Integers
    twin: Integers


@dataclass(frozen=True, slots=True)
class Area:
    """An area under the ROC curve, or a difference of two, with its 95 % intervals; nan without pairs.

    Attributes:
        low, high: over methods: what other methods may show. Runs of one method are alike in signal and fate, so the
            number of methods says how sure this is; with fewer than 3 there is none.
        same_low, same_high: over runs: these very methods, other seeds.
        pairs: of a failing and a sound run.
        visible: smallest effect that such data would show with power 0.8.
    """

    estimate: float
    low: float
    high: float
    same_low: float
    same_high: float
    pairs: int
    visible: float


def judge(
    features: Floats,
    failed: Sequence[bool],
    strata: Sequence[Hashable],
    methods: Sequence[Hashable],
    seeds: Sequence[Hashable],
) -> Judged:
    """Compare every failing with every sound run of the same stratum, by models that know neither.

    Args:
        features: (N, F), what is known of each run; a value that is not finite counts as worse than any that is.
        failed: how each run ended.
        strata: of each run, such as learning rate, size and text.
        methods: of each run; no model sees another run of either method.
        seeds: of each run; no model sees another run of either seed.

    Raises:
        ValueError: if the lengths differ, or ``features`` has not two axes.
    """
    if features.ndim != 2 or {len(failed), len(strata), len(methods), len(seeds)} != {len(features)}:
        raise ValueError("features must be (N, F), and all else of length N")
    known = _bounded(features)
    failing, sound = _pairs(np.asarray(failed, bool), strata)
    method, seed = _codes(methods), _codes(seeds)
    won, untrained = np.full(len(failing), 0.5), 0
    twins: dict[tuple[frozenset[int], frozenset[int]], list[int]] = {}
    for pair, (bad, good) in enumerate(zip(failing, sound, strict=True)):
        key = (frozenset((int(method[bad]), int(method[good]))), frozenset((int(seed[bad]), int(seed[good]))))
        twins.setdefault(key, []).append(pair)
    for (held_methods, held_seeds), members in twins.items():
        free = ~np.isin(method, list(held_methods)) & ~np.isin(seed, list(held_seeds))
        usable = free[failing] & free[sound]
        if not usable.any():
            untrained += len(members)
            continue
        weights = _fit(known, failing[usable], sound[usable], np.flatnonzero(free))
        margin = (known[failing[members]] - known[sound[members]]) @ weights
        won[members] = np.where(margin > 0, 1.0, np.where(margin < 0, 0.0, 0.5))
    return Judged(
        failing, sound, won, untrained, method, _codes(list(zip(method.tolist(), seed.tolist(), strict=True)))
    )


def area(judged: Judged, *, resamples: int = RESAMPLES, seed: int = 0) -> Area:
    """Share of the pairs in which the failing run was found; 0.5 is guessing."""
    return _area(judged, judged.won, resamples, seed)


def gain(judged: Judged, other: Judged, *, resamples: int = RESAMPLES, seed: int = 0) -> Area:
    """Area of the first minus area of the second, on the same pairs.

    Raises:
        ValueError: if they are not of the same pairs.
    """
    if not (np.array_equal(judged.failing, other.failing) and np.array_equal(judged.sound, other.sound)):
        raise ValueError("the two were not judged on the same pairs")
    return _area(judged, judged.won - other.won, resamples, seed)


def _area(judged: Judged, values: Floats, resamples: int, seed: int) -> Area:
    if len(values) == 0:
        return Area(math.nan, math.nan, math.nan, math.nan, math.nan, 0, math.nan)
    low, high, visible = _interval(judged, values, judged.method, resamples, seed)
    same_low, same_high, _ = _interval(judged, values, judged.twin, resamples, seed)
    return Area(float(values.mean()), low, high, same_low, same_high, len(values), visible)


def _interval(
    judged: Judged, values: Floats, cluster: Integers, resamples: int, seed: int
) -> tuple[float, float, float]:
    """By resampling whole clusters: a pair counts as often as both of its runs are drawn."""
    used, inverse = np.unique(cluster[np.concatenate([judged.failing, judged.sound])], return_inverse=True)
    first, second = inverse[: len(judged.failing)], inverse[len(judged.failing) :]
    counts = multiplicities(len(used), resamples, seed)
    weights = counts[:, first] * counts[:, second]
    total = weights.sum(1)
    found = np.divide(weights @ values, total, out=np.full(resamples, np.nan), where=total > 0)
    return expanded_interval(found, len(used))


def _pairs(failed: NDArray[np.bool_], strata: Sequence[Hashable]) -> tuple[Integers, Integers]:
    failing: list[int] = []
    sound: list[int] = []
    of: dict[Hashable, list[int]] = {}
    for run, stratum in enumerate(strata):
        of.setdefault(stratum, []).append(run)
    for runs in of.values():
        for bad in runs:
            for good in runs:
                if failed[bad] and not failed[good]:
                    failing.append(bad)
                    sound.append(good)
    return np.array(failing, dtype=np.int64), np.array(sound, dtype=np.int64)


def _bounded(features: Floats) -> Floats:
    """The features with what is not finite put above the largest that is."""
    bounded = np.array(features, float)
    for column in bounded.T:
        finite = column[np.isfinite(column)]
        top = float(finite.max()) if len(finite) else 0.0
        spread = float(finite.std()) if len(finite) else 0.0
        column[~np.isfinite(column)] = top + (spread or max(1.0, abs(top)))
    return bounded


def _codes(values: Sequence[Hashable]) -> Integers:
    number = {value: index for index, value in enumerate(ordered(values))}
    return np.array([number[value] for value in values], dtype=np.int64)


def _fit(features: Floats, failing: Integers, sound: Integers, runs: Integers) -> Floats:
    """Weights of a ridge logistic regression on differences within pairs; the unit is the spread over ``runs``."""
    if features.shape[1] == 0:
        return np.zeros(0)
    scale = features[runs].std(0)
    scale = np.where(scale > 0, scale, 1.0)
    x = (features[failing] - features[sound]) / scale
    weights = np.zeros(x.shape[1])
    for _ in range(NEWTON_STEPS):
        chance = 1 / (1 + np.exp(-np.clip(x @ weights, -30, 30)))
        slope = x.T @ (1 - chance) - RIDGE * weights
        curvature = (x * (chance * (1 - chance))[:, None]).T @ x + RIDGE * np.eye(x.shape[1])
        step = np.linalg.solve(curvature, slope)
        weights = weights + step
        if np.abs(step).max() < 1e-8:
            break
    return weights / scale
