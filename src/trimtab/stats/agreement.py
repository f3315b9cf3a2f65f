"""Agreement of the predictions of several runs, measured by Cohen's kappa."""

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
    """Mean kappa over the pairs of runs for which it is defined, with a 95 % jackknife interval.

    The interval is nan with fewer than 3 runs.

    Attributes:
        with_first: kappa of each later run with the first run.
    """

    mean: float
    low: float
    high: float
    with_first: tuple[float, ...]


def cohens_kappa(first: Labels, second: Labels) -> float:
    """Agreement of two label sequences beyond chance.

    The value is 1 for complete agreement and 0 for the agreement expected by chance. It is nan if both sequences
    consist of one and the same label.

    Raises:
        ValueError: if the shapes differ, or the sequences are empty.
    """
    if first.shape != second.shape or first.size == 0:
        raise ValueError(f"label sequences of shapes {first.shape} and {second.shape} cannot be compared")
    names, codes = np.unique(np.concatenate([first.ravel(), second.ravel()]), return_inverse=True)
    a = codes[: first.size]
    b = codes[first.size :]
    size = len(names)
    shares = [np.bincount(x, minlength=size) / x.size for x in (a, b)]
    by_chance = float(shares[0] @ shares[1])
    return float((np.mean(a == b) - by_chance) / (1 - by_chance)) if by_chance < 1 else math.nan


def agreement(predictions: Sequence[Labels]) -> Agreement:
    """Cohen's kappa over all pairs of runs.

    Pairs share runs and are therefore dependent, so the jackknife leaves out one run at a time.
    """
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
    pairs = [matrix[~np.eye(runs - 1, dtype=bool)] for matrix in keep]
    without = np.array([np.nanmean(values) if np.isfinite(values).any() else math.nan for values in pairs])
    error = math.sqrt((runs - 1) / runs * float(((without - without.mean()) ** 2).sum()))
    half = t_quantile(0.975, runs - 1) * error
    return Agreement(mean, mean - half, mean + half, first)
