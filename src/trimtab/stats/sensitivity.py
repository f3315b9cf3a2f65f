"""LR sensitivity (Wortsman et al., arXiv 2309.14322): the mean excess loss over three decades of learning rates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trimtab.stats.student import t_quantile

WINDOW = 3 * math.log2(10)  # octaves: three decades, half of them below the best learning rate


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """LR sensitivity, in nats.

    Attributes:
        estimate: mean over the tested octaves of the window of min(final loss, initial loss), minus the best loss.
        low, high: 95 % interval over seeds; nan if no learning rate has two runs.
        octaves: tested part of the window.
        window: the whole window, in octaves.
    """

    estimate: float
    low: float
    high: float
    octaves: float
    window: float = WINDOW


def lr_sensitivity(
    finals: Mapping[float, Sequence[float]], initial_loss: float, best_loss: float, centre: float
) -> Sensitivity:
    """Return the sensitivity of one arm.

    Runs are put into bins of one octave about the whole distances from the best learning rate, and every bin counts the
    same. A final loss that is not finite or exceeds the initial loss counts as the initial loss, as published.

    Args:
        finals: final losses by log2 LR.
        initial_loss: loss before training.
        best_loss: lowest mean final loss of the arm.
        centre: log2 of the best learning rate.
    """
    bins: dict[int, list[float]] = {}
    for octave, losses in finals.items():
        if abs(octave - centre) <= WINDOW / 2:
            held = [min(loss, initial_loss) if math.isfinite(loss) else initial_loss for loss in losses]
            bins.setdefault(round(octave - centre), []).extend(held)
    if not bins or not math.isfinite(best_loss):
        return Sensitivity(math.nan, math.nan, math.nan, 0.0)
    means = [float(np.mean(losses)) for losses in bins.values()]
    estimate = float(np.mean(means)) - min(best_loss, initial_loss)
    freedom = sum(len(losses) - 1 for losses in bins.values())
    covered = min(float(len(bins)), WINDOW)
    if freedom == 0:
        return Sensitivity(estimate, math.nan, math.nan, covered)
    variance = sum(float(np.var(losses)) * len(losses) for losses in bins.values()) / freedom
    of_best = variance / max(len(losses) for losses in bins.values())
    error = math.sqrt(sum(variance / len(losses) for losses in bins.values()) / len(bins) ** 2 + of_best)
    half = t_quantile(0.975, freedom) * error
    return Sensitivity(estimate, estimate - half, estimate + half, covered)
