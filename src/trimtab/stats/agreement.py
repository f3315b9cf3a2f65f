"""Agreement of runs in what they predict: Cohen's kappa."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimtab.stats.student import t_quantile

Labels = NDArray[np.integer]


@dataclass(frozen=True, slots=True)
class Agreement:
    """Mean kappa over all pairs of runs that have one, with a 95 % jackknife interval; nan with fewer than 3 runs.

    Attributes:
        with_first: kappa of each other run with the first.
    """

    mean: float
    low: float
    high: float
    with_first: tuple[float, ...]


def cohens_kappa(first: Labels, second: Labels) -> float:
    """Agreement beyond chance of two sequences of labels: 1 always, 0 as by chance; nan if both always say the same.

    Raises:
        ValueError: if the shapes differ or there are no labels.
    """
    if first.shape != second.shape or first.size == 0:
        raise ValueError(f"shapes {first.shape} and {second.shape} cannot be compared")
    names, codes = np.unique(np.concatenate([first.ravel(), second.ravel()]), return_inverse=True)
    a, b, size = codes[: first.size], codes[first.size :], len(names)
    shares = [np.bincount(x, minlength=size) / x.size for x in (a, b)]
    by_chance = float(shares[0] @ shares[1])
    return float((np.mean(a == b) - by_chance) / (1 - by_chance)) if by_chance < 1 else math.nan


def agreement(predictions: Sequence[Labels]) -> Agreement:
    """Of all pairs of runs; as pairs share runs, the interval leaves out one run at a time."""
    runs = len(predictions)
    kappa = np.full((runs, runs), math.nan)
    for i in range(runs):
        for j in range(i):
            kappa[i, j] = kappa[j, i] = cohens_kappa(predictions[i], predictions[j])
    if runs < 2:
        return Agreement(math.nan, math.nan, math.nan, ())
    off = ~np.eye(runs, dtype=bool)
    if not np.isfinite(kappa).any():
        return Agreement(math.nan, math.nan, math.nan, tuple(kappa[0, 1:].tolist()))
    mean = float(np.nanmean(kappa[off]))
    first = tuple(float(value) for value in kappa[0, 1:])
    if runs < 3:
        return Agreement(mean, math.nan, math.nan, first)
    keep = [np.delete(np.delete(kappa, run, 0), run, 1) for run in range(runs)]
    left = [one[~np.eye(runs - 1, dtype=bool)] for one in keep]
    without = np.array([np.nanmean(one) if np.isfinite(one).any() else math.nan for one in left])
    error = math.sqrt((runs - 1) / runs * float(((without - without.mean()) ** 2).sum()))
    half = t_quantile(0.975, runs - 1) * error
    return Agreement(mean, mean - half, mean + half, first)
