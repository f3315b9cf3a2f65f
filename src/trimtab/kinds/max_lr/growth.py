"""The growth of a probed quantity: its value in a failing run over its value in a stable run of the same seed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from trimtab.kinds.max_lr.findings import LabelledRun
from trimtab.kinds.max_lr.series import Series
from trimtab.stats.intervals import mean_interval


@dataclass(frozen=True, slots=True)
class Growth:
    """The growth of a quantity over the pairs of a failing and a stable run of the same seed.

    Attributes:
        ratio: geometric mean over the pairs; the ratio of a pair is the largest ratio among the layers.
        low, high: 95 % interval of the ratio; None for a single pair.
    """

    quantity: str
    ratio: float
    low: float | None
    high: float | None
    pairs: int


def growth_of(
    quantity: str, stable: list[LabelledRun], broken: list[LabelledRun], series: Mapping[str, Series]
) -> Growth | None:
    """Return the growth of a quantity; None without a pair of runs.

    The pair of a seed is its failing run at the lowest LR and its stable run at the highest LR below that.
    """
    logs: list[float] = []
    for seed in sorted({run.trial.seed for run in broken}):
        worst = next(run for run in broken if run.trial.seed == seed)
        below = [run for run in stable if run.trial.seed == seed and run.trial.tick < worst.trial.tick]
        if below:
            best = max(below, key=lambda run: run.trial.tick)
            ratios = _ratios(series[worst.run_id].get(quantity, {}), series[best.run_id].get(quantity, {}))
            if ratios:
                logs.append(math.log(max(ratios)))
    if not logs:
        return None
    mean, low, high = mean_interval(logs)
    single = len(logs) == 1
    return Growth(
        quantity, math.exp(mean), None if single else math.exp(low), None if single else math.exp(high), len(logs)
    )


def _ratios(worst: dict[str, list[tuple[int, float]]], best: dict[str, list[tuple[int, float]]]) -> list[float]:
    ratios: list[float] = []
    for place, values in worst.items():
        known = dict(best.get(place, []))
        shared = [(value, known[step]) for step, value in values if step in known and math.isfinite(value)]
        if shared and shared[-1][0] > 0 and shared[-1][1] > 0:
            ratios.append(shared[-1][0] / shared[-1][1])
    return ratios
