"""Paired comparison of two arms on the same seeds and the same text: mean difference, intervals and p-value."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimtab.stats.student import t_cdf, t_quantile

Floats = NDArray[np.float64]

RESAMPLES = 2000
POWER = 0.8


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """A mean difference with 95 % intervals, in the unit of the data.

    Attributes:
        low, high: interval over seeds and text together; nan with one seed.
        seed_low, seed_high: interval over seeds, with the text held fixed; nan with one seed.
        text_low, text_high: interval over text, with the runs held fixed, by a bootstrap of blocks.
        p_value: two-sided p-value of no difference, over seeds and text together; nan with one seed.
        visible: smallest difference that data of this variance detect with power 0.8; nan with one seed.
    """

    mean: float
    low: float
    high: float
    seed_low: float
    seed_high: float
    text_low: float
    text_high: float
    p_value: float
    visible: float


def paired_difference(differences: Floats) -> PairedDifference:
    """Mean of paired differences over seeds and blocks of text, with intervals.

    Seeds and blocks are both random samples. The variance of the mean is therefore the sum of the variance between
    seeds and the variance between blocks. Both contain the residual variance, so it is subtracted once. Degrees of
    freedom are Satterthwaite's.

    Args:
        differences: (seeds, blocks); a block is a stretch of text on which both runs of a seed were evaluated.

    Raises:
        ValueError: if there is no seed, there are fewer than two blocks, or a value is not finite.
    """
    num_seeds, num_blocks = differences.shape
    if num_seeds < 1 or num_blocks < 2:
        raise ValueError(f"{num_seeds} seeds and {num_blocks} blocks are too few; 1 seed and 2 blocks are needed")
    if not np.isfinite(differences).all():
        raise ValueError("a difference is not finite")
    mean = float(differences.mean())
    text_low, text_high = _over_blocks(differences.mean(0))
    if num_seeds == 1:
        nan = math.nan
        return PairedDifference(mean, nan, nan, nan, nan, text_low, text_high, nan, nan)
    seeds, blocks = differences.mean(1), differences.mean(0)
    of_seeds = float(seeds.var(ddof=1)) / num_seeds
    of_text = float(blocks.var(ddof=1)) / num_blocks
    rest = differences - seeds[:, None] - blocks[None, :] + mean
    freedom = (num_seeds - 1) * (num_blocks - 1)
    of_rest = float((rest**2).sum()) / freedom / differences.size
    variance = max(of_seeds, of_text, of_rest, of_seeds + of_text - of_rest)
    seed_half = t_quantile(0.975, num_seeds - 1) * math.sqrt(of_seeds)
    if variance == 0:
        return PairedDifference(mean, mean, mean, mean, mean, text_low, text_high, 0.0 if mean else 1.0, 0.0)
    share = of_seeds**2 / (num_seeds - 1) + of_text**2 / (num_blocks - 1)
    degrees = max(1.0, variance**2 / share) if share else float(freedom)
    error = math.sqrt(variance)
    half = t_quantile(0.975, degrees) * error
    return PairedDifference(
        mean=mean,
        low=mean - half,
        high=mean + half,
        seed_low=mean - seed_half,
        seed_high=mean + seed_half,
        text_low=text_low,
        text_high=text_high,
        p_value=2 * (1 - t_cdf(abs(mean) / error, degrees)),
        visible=half + t_quantile(POWER, degrees) * error,
    )


def _over_blocks(blocks: Floats) -> tuple[float, float]:
    picks = np.random.default_rng(0).integers(len(blocks), size=(RESAMPLES, len(blocks)))
    low, high = np.quantile(blocks[picks].mean(1), [0.025, 0.975])
    return float(low), float(high)
