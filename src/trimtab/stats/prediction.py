"""Prediction of failing runs from early signals: the cross-validated area under the ROC curve.

Each comparison pairs a failing run with a sound run of the same stratum, such as the same learning rate, so that the
stratum itself carries no information. The model that ranks the two runs is fitted to runs of other methods and other
seeds only, so that neither method nor seed leaks into it.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from trimtab.stats.resampling import RESAMPLES, expanded_interval, multiplicities, ordered

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
# A normal prior with standard deviation 1 on the log odds per standard deviation of a feature. With few pairs the fit
# then gives the direction of an effect without claiming certainty.
RIDGE = 1.0
NEWTON_STEPS = 12


@dataclass(frozen=True, slots=True)
class Judged:
    """All pairs of a failing and a sound run, and how the model ranked each pair.

    Attributes:
        failing, sound: (P,), indices of the two runs of each pair.
        won: (P,), 1 if the failing run was ranked as worse, 0 if the sound run was, 1/2 for a tie.
        untrained: number of pairs that had no runs of other methods and seeds to fit a model to; these count as ties.
        method: (N,), number of each run's method.
        twin: (N,), number of each run's combination of method and seed.
    """

    failing: Integers
    sound: Integers
    won: Floats
    untrained: int
    method: Integers
    twin: Integers

    def only(self, pairs: NDArray[np.bool_]) -> Judged:
        """Some of the pairs; ``untrained`` keeps its value."""
        return replace(self, failing=self.failing[pairs], sound=self.sound[pairs], won=self.won[pairs])


@dataclass(frozen=True, slots=True)
class Area:
    """An area under the ROC curve, or a difference of two areas, with 95 % intervals; nan without pairs.

    Attributes:
        low, high: interval over methods, which holds for other methods too. Runs of one method have similar signals
            and outcomes, so the number of methods determines the width. nan with fewer than 3 methods.
        same_low, same_high: interval over runs, which holds for the same methods with other seeds.
        pairs: number of pairs of a failing and a sound run.
        visible: smallest effect that data of this variance detect with power 0.8.
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
    """Compare every failing run with every sound run of the same stratum.

    The model for a pair is fitted to pairs that share no method and no seed with it.

    Args:
        features: (N, F), the features of each run; a non-finite value counts as larger than every finite value.
        failed: whether each run failed.
        strata: the stratum of each run, such as learning rate, size and text.
        methods: the method of each run.
        seeds: the seed of each run.

    Raises:
        ValueError: if the lengths differ, or ``features`` does not have two axes.
    """
    if features.ndim != 2 or {len(failed), len(strata), len(methods), len(seeds)} != {len(features)}:
        raise ValueError("features must have the shape (N, F), and the other arguments the length N")
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
    """Area under the ROC curve: the share of pairs whose failing run was ranked as worse; 0.5 is chance."""
    return _area(judged, judged.won, resamples, seed)


def gain(judged: Judged, other: Judged, *, resamples: int = RESAMPLES, seed: int = 0) -> Area:
    """Area of the first minus area of the second, on the same pairs.

    Raises:
        ValueError: if the two hold different pairs.
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
    """Interval by a bootstrap of whole clusters; the weight of a pair is the product of the counts of its two runs."""
    used, inverse = np.unique(cluster[np.concatenate([judged.failing, judged.sound])], return_inverse=True)
    first, second = inverse[: len(judged.failing)], inverse[len(judged.failing) :]
    counts = multiplicities(len(used), resamples, seed)
    # Pairs of the same two clusters have the same weight, so their values are added up first.
    sums, pairs = np.zeros((2, len(used), len(used)))
    np.add.at(sums, (first, second), values)
    np.add.at(pairs, (first, second), 1.0)
    total = ((counts @ pairs) * counts).sum(1)
    means = np.divide(((counts @ sums) * counts).sum(1), total, out=np.full(resamples, np.nan), where=total > 0)
    return expanded_interval(means, len(used))


def _pairs(failed: NDArray[np.bool_], strata: Sequence[Hashable]) -> tuple[Integers, Integers]:
    failing: list[int] = []
    sound: list[int] = []
    members: dict[Hashable, list[int]] = {}
    for run, stratum in enumerate(strata):
        members.setdefault(stratum, []).append(run)
    for runs in members.values():
        for bad in runs:
            for good in runs:
                if failed[bad] and not failed[good]:
                    failing.append(bad)
                    sound.append(good)
    return np.array(failing, dtype=np.int64), np.array(sound, dtype=np.int64)


def _bounded(features: Floats) -> Floats:
    """Replace each non-finite feature by a value above the largest finite value of its column."""
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
    """Weights of a ridge logistic regression on differences within pairs.

    The penalty applies to features in units of their standard deviation over ``runs``.
    """
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
