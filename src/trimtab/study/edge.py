"""The edge of an arm: the LR at which its runs begin to fail, estimated from labelled runs, and the next LRs to try."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trimtab.stats.comparison import clipped_density
from trimtab.stats.posterior import EdgeEvidence, EdgePosterior, grid_quantiles
from trimtab.study.labels import Label, Yardstick, failed, label
from trimtab.study.settings import Criterion
from trimtab.study.trial import SIXTEENTH, Results, Tick, Trial, order_of


def one_edge(
    arm: str, results: Results, yardstick: Yardstick, criterion: Criterion, margin: float | None = None
) -> bool:
    """Whether the failures of an arm's first sweep are monotone in LR for every seed.

    They are monotone if every run above the lowest failed LR fails too.
    """
    sweep = sorted((trial for trial in results if trial.arm == arm and trial.round == 0), key=order_of)
    for seed in sorted({trial.seed for trial in sweep}):
        labels = [
            label(results[trial], trial.tick, yardstick, criterion, margin or criterion.margin)
            for trial in sweep
            if trial.seed == seed
        ]
        failures = [failure for failure in map(failed, labels) if failure is not None]
        if failures != sorted(failures):
            return False
    return True


def edge_trials(arm: str, results: Results, yardstick: Yardstick, criterion: Criterion, margin: float) -> EdgeEvidence:
    """The labelled runs of one arm, as evidence on its edge."""
    return trials_of(
        [
            (trial, label(results[trial], trial.tick, yardstick, criterion, margin))
            for trial in sorted(results, key=order_of)
            if trial.arm == arm
        ]
    )


def trials_of(labelled: Sequence[tuple[Trial, Label]], *, strict: bool = False) -> EdgeEvidence:
    """Pairs of octave and failure; labels that are neither failure nor success are omitted."""
    pairs = [(trial.tick.octave, failed(its_label, strict=strict)) for trial, its_label in labelled]
    return EdgeEvidence.of([(x, failure) for x, failure in pairs if failure is not None])


def interval_width(posterior: EdgePosterior) -> float:
    """Width of the 95 % interval of LR50 inside the tested range, in octaves."""
    low, high = grid_quantiles(posterior.x50, clipped_density(posterior, 0.5), (0.025, 0.975))
    return float(high - low)


def propose(posterior: EdgePosterior, num_probes: int) -> list[Tick]:
    """Distinct learning rates at even quantiles of LR50, inside the tested range."""
    lowest = round(posterior.low * SIXTEENTH)
    highest = round(posterior.high * SIXTEENTH)
    levels = [(i + 1) / (num_probes + 1) for i in range(num_probes)]
    wanted = grid_quantiles(posterior.x50, clipped_density(posterior, 0.5), levels)
    chosen: list[int] = []
    for x in wanted:
        tick = int(np.clip(round(float(x) * SIXTEENTH), lowest, highest))
        free = (tick + offset for size in range(highest - lowest + 1) for offset in (size, -size))
        chosen.append(next(t for t in free if lowest <= t <= highest and t not in chosen))
    return [Tick(tick) for tick in sorted(chosen)]
