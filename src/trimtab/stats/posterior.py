r"""Bayesian posterior, on a grid of log2 LR, of the edge: the learning rate at which training breaks.

.. math:: P(\mathrm{fail} \mid x) = \lambda + (1 - \lambda)\,\mathrm{logistic}((x - x_{50}) / s)

with :math:`x = \log_2 \mathrm{LR}`.

Under complete separation, which is the usual case, the maximum-likelihood estimate does not exist; the posterior does.
The prior of x50 is flat. The prior of s is log-normal within 0.05 to 1.5 octaves, with a flat prior over its location
and spread. An arm whose own runs show a sharp edge learns location and spread from the other arms too; every other arm
is judged by its own runs alone, because a gradual edge among sharp ones would get an interval that is too narrow. The
prior of the lapse rate is Beta(1, 30), mostly below 6 %. Failure levels refer to the curve without lapses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from trimtab.stats.graded import LAPSES as GRADED_LAPSES
from trimtab.stats.graded import GradedLikelihood

Floats = NDArray[np.float64]

STEP = 1 / 16  # octaves between grid points, and between learning rates that may be proposed
PAD = 3.0  # octaves of the grid beyond the tested range on each side
WIDTHS = np.geomspace(0.05, 1.5, 14)
LAPSES = np.array([0.0, 0.01, 0.02, 0.04, 0.06, 0.09, 0.13])
LAPSE_PRIOR = (1 - LAPSES) ** 29 * np.gradient(LAPSES)
GRADED_LAPSE_PRIOR = (1 - GRADED_LAPSES) ** 29 * np.gradient(GRADED_LAPSES)
# Wide edges come first: from a few runs, chance separates the failures of a wide edge as if it were a cliff. With
# locations from 0.05 the intervals of an edge of s = 0.45 covered 0.89; the price is intervals wider by about 12 %.
HYPER_LOCATIONS = np.log(np.geomspace(0.15, 1.5, 9))
HYPER_SPREADS = np.array([0.2, 0.5, 1.0, 2.0])
SHARP_WIDTH = 0.35  # octaves; an edge is sharp if s is below with probability SHARP_CERTAINTY, from its own runs
SHARP_CERTAINTY = 0.9


@dataclass(frozen=True, slots=True)
class EdgeEvidence:
    """Runs of one arm: their learning rates and whether they failed.

    Attributes:
        x: log2 LR of each run.
        failed: whether each run failed.
        grade: how far the loss of each run lies from the line, see ``trimtab.stats.graded``; None if only labels count.
    """

    x: Floats
    failed: NDArray[np.bool_]
    grade: NDArray[np.intp] | None = None

    @classmethod
    def of(cls, pairs: Sequence[tuple[float, bool]]) -> EdgeEvidence:
        """Build trials from pairs (log2 LR, failed)."""
        return cls(np.array([x for x, _ in pairs], float), np.array([f for _, f in pairs], bool))


@dataclass(frozen=True, slots=True)
class EdgePosterior:
    """Posterior of the edge of one arm.

    Attributes:
        x50: grid of log2 LR50, ascending.
        weight: (x50, width), the probability of each pair; the sum is 1.
        low, high: the tested range in log2 LR; no limit outside it is reported.
        pooled: whether the runs of other arms inform the width of this edge.
    """

    x50: Floats
    weight: Floats
    low: float
    high: float
    pooled: bool = False

    def density(self, level: float = 0.5) -> Floats:
        """Probability of each point of ``x50`` as the log2 LR at which a share ``level`` of runs fails."""
        if level == 0.5:
            return self.weight.sum(1)
        points = len(self.x50)
        lower, upper, share = _shifted(points, level)
        weight = self.weight.ravel()
        below: Floats = np.bincount(lower, weight * (1 - share), minlength=points).astype(float)
        return below + np.bincount(upper, weight * share, minlength=points)

    def quantiles(self, probabilities: Sequence[float], level: float = 0.5) -> Floats:
        """Quantiles of the log2 LR at which a share ``level`` of runs fails."""
        return grid_quantiles(self.x50, self.density(level), probabilities)

    def width_quantiles(self, probabilities: Sequence[float]) -> Floats:
        """Quantiles of the edge width s, in octaves."""
        widths = 2 ** grid_quantiles(np.log2(WIDTHS), self.weight.sum(0), probabilities)
        return np.clip(widths, WIDTHS[0], WIDTHS[-1])


@cache
def _shifted(points: int, level: float) -> tuple[NDArray[np.intp], NDArray[np.intp], Floats]:
    """For each pair (x50, width), the points of the grid below and above the limit at a level, and the share above."""
    shifted = np.arange(points)[:, None] + WIDTHS * np.log(level / (1 - level)) / STEP
    index: Floats = np.clip(shifted, 0, points - 1).ravel()
    whole: Floats = np.floor(index)
    lower = whole.astype(np.intp)
    return lower, np.minimum(lower + 1, points - 1), index - whole


def grid_quantiles(grid: Floats, density: Floats, probabilities: Sequence[float]) -> Floats:
    """Quantiles of a density on an evenly spaced grid, where each point represents the cell around it."""
    cumulative = np.concatenate(([0.0], np.cumsum(density)))
    half = (grid[1] - grid[0]) / 2
    edges = np.concatenate((grid - half, [grid[-1] + half]))
    # A tiny slope keeps the cumulative distribution invertible where the density is 0.
    return np.interp(probabilities, cumulative / cumulative[-1] + np.arange(len(edges)) * 1e-12, edges)


MOST_MARGINALS = 500  # of about 30 kB
_MARGINALS: dict[tuple[float, int, bytes, bytes, bytes], Floats] = {}


class EdgeModel:
    """Computes the posteriors of the edges of one study. Likelihoods are cached and reused between rounds.

    Args:
        low, high: the tested range in log2 LR, of every arm without one of its own.
        ranges: the tested ranges of other arms. The grid covers all of them.

    Raises:
        ValueError: if a range is empty or reversed.
    """

    def __init__(self, low: float, high: float, ranges: Mapping[str, tuple[float, float]] | None = None) -> None:
        self.shared = (low, high)
        self.ranges = dict(ranges or {})
        for lowest, highest in (self.shared, *self.ranges.values()):
            if not lowest < highest:
                raise ValueError(f"the range of log2 LR is empty: {lowest} to {highest}")
        low = min([low, *(lowest for lowest, _ in self.ranges.values())])
        high = max([high, *(highest for _, highest in self.ranges.values())])
        self.x50 = np.arange(np.floor((low - PAD) / STEP), np.ceil((high + PAD) / STEP) + 1) * STEP
        deviation = (np.log(WIDTHS) - HYPER_LOCATIONS[:, None, None]) / HYPER_SPREADS[:, None]
        table = np.exp(-0.5 * deviation**2).reshape(-1, len(WIDTHS))
        self.width_given_hyper = table / table.sum(1, keepdims=True)
        self._log_likelihood: dict[tuple[float, bool], Floats] = {}
        self._graded = GradedLikelihood(self.x50, WIDTHS, GRADED_LAPSE_PRIOR)

    def fit(self, arms: Mapping[str, EdgeEvidence]) -> dict[str, EdgePosterior]:
        """Posterior of every arm.

        The runs of other arms inform the width of an edge only if the arm's own runs show that it is sharp and only
        labels count. Without any runs the posterior of each arm is the prior.
        """
        likelihood = {name: self._marginal(trials) for name, trials in arms.items()}
        by_width = {name: table.sum(0) for name, table in likelihood.items()}
        log_evidence = {name: np.log(self.width_given_hyper @ widths) for name, widths in by_width.items()}
        total = sum(log_evidence.values(), np.zeros(len(self.width_given_hyper)))
        nothing = np.zeros(len(self.width_given_hyper))
        posteriors: dict[str, EdgePosterior] = {}
        for name, table in likelihood.items():
            alone = self._posterior(name, table, nothing, pooled=False)
            others = total - log_evidence[name]
            # Losses tell the width of an edge by themselves.
            sharp = arms[name].grade is None and _is_sharp(alone) and len(arms) > 1
            posteriors[name] = self._posterior(name, table, others, pooled=True) if sharp else alone
        return posteriors

    def _posterior(self, name: str, table: Floats, log_hyper: Floats, *, pooled: bool) -> EdgePosterior:
        hyper = np.exp(log_hyper - log_hyper.max())
        weight = table * (hyper @ self.width_given_hyper)
        low, high = self.ranges.get(name, self.shared)
        return EdgePosterior(self.x50, weight / weight.sum(), low, high, pooled)

    def _marginal(self, trials: EdgeEvidence) -> Floats:
        """Likelihood over (x50, width), summed over the prior of the lapse and scaled to a maximum near 1."""
        # A search asks for the same arms again in every round, with new runs of one or two of them.
        grades = b"" if trials.grade is None else trials.grade.tobytes()
        key = (float(self.x50[0]), len(self.x50), trials.x.tobytes(), trials.failed.tobytes(), grades)
        if key not in _MARGINALS:
            if len(_MARGINALS) >= MOST_MARGINALS:
                _MARGINALS.pop(next(iter(_MARGINALS)))
            _MARGINALS[key] = self._new_marginal(trials)
        return _MARGINALS[key]

    def _new_marginal(self, trials: EdgeEvidence) -> Floats:
        if trials.grade is not None:
            return self._graded.marginal(trials.x, trials.failed, trials.grade)
        total = np.zeros((len(self.x50), len(WIDTHS), len(LAPSES)))
        for x, failed in zip(trials.x.tolist(), trials.failed.tolist(), strict=True):
            total += self._log_likelihood_of(x, failed)
        return np.exp(total - total.max()) @ LAPSE_PRIOR

    def _log_likelihood_of(self, x: float, failed: bool) -> Floats:
        key = (x, failed)
        if key not in self._log_likelihood:
            edge = 1 / (1 + np.exp(np.clip((self.x50[:, None] - x) / WIDTHS, -500, 500)))
            fail = LAPSES + (1 - LAPSES) * edge[:, :, None]
            self._log_likelihood[key] = np.log(np.maximum(fail if failed else 1 - fail, 1e-12))
        return self._log_likelihood[key]


def _is_sharp(alone: EdgePosterior) -> bool:
    return float(alone.weight.sum(0)[WIDTHS <= SHARP_WIDTH].sum()) >= SHARP_CERTAINTY
