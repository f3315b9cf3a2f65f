"""The edge of an arm: the LR at which its runs begin to fail, estimated from labelled runs, and the next LRs to try."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from trimtab.stats.comparison import clipped_density
from trimtab.stats.posterior import EdgeEvidence, EdgePosterior, grid_quantiles
from trimtab.study.labels import Edge, Label, Yardstick, failed, label
from trimtab.study.settings import Criterion
from trimtab.study.trial import SIXTEENTH, Results, Tick, Trial, order_of


def one_edge(
    arm: str,
    results: Results,
    yardstick: Yardstick,
    criterion: Criterion,
    edge: Edge = Edge.QUALITY,
    margin: float | None = None,
) -> bool:
    """Whether the failures of an arm's sweep are monotone in LR for every seed.

    They are monotone if every run above the lowest failed LR fails too.
    """
    sweep = sorted((trial for trial in results if trial.arm == arm and trial.round == 0), key=_by_rate)
    for seed in sorted({trial.seed for trial in sweep}):
        labels = [
            label(results[trial], trial.tick, yardstick, criterion, margin or criterion.margin)
            for trial in sweep
            if trial.seed == seed
        ]
        failures = [failure for failure in (failed(each, edge) for each in labels) if failure is not None]
        if failures != sorted(failures):
            return False
    return True


def _by_rate(trial: Trial) -> tuple[int, int]:
    return trial.tick, trial.seed


def edge_trials(
    arm: str,
    results: Results,
    yardstick: Yardstick,
    criterion: Criterion,
    edge: Edge = Edge.QUALITY,
    margin: float | None = None,
) -> EdgeEvidence:
    """The labelled runs of one arm, as evidence on one of its edges."""
    return trials_of(
        [
            (trial, label(results[trial], trial.tick, yardstick, criterion, margin or criterion.margin))
            for trial in sorted((trial for trial in results if trial.arm == arm), key=order_of)
        ],
        edge,
    )


def trials_of(labelled: Sequence[tuple[Trial, Label]], edge: Edge = Edge.QUALITY) -> EdgeEvidence:
    """Pairs of octave and failure; labels that are no evidence on the edge are omitted."""
    pairs = [(trial.tick.octave, failed(its_label, edge)) for trial, its_label in labelled]
    return EdgeEvidence.of([(x, failure) for x, failure in pairs if failure is not None])


def interval_width(posterior: EdgePosterior) -> float:
    """Width of the 95 % interval of LR50 inside the tested range, in octaves."""
    low, high = grid_quantiles(posterior.x50, clipped_density(posterior, 0.5), (0.025, 0.975))
    return float(high - low)


def propose(posterior: EdgePosterior, num_probes: int, taken: Collection[Tick] = ()) -> list[Tick]:
    """Distinct learning rates at even quantiles of LR50, inside the tested range and not among those ``taken``."""
    lowest = round(posterior.low * SIXTEENTH)
    highest = round(posterior.high * SIXTEENTH)
    levels = [(i + 1) / (num_probes + 1) for i in range(num_probes)]
    wanted = grid_quantiles(posterior.x50, clipped_density(posterior, 0.5), levels)
    chosen: list[int] = []
    for x in wanted:
        tick = int(np.clip(round(float(x) * SIXTEENTH), lowest, highest))
        free = (tick + offset for size in range(highest - lowest + 1) for offset in (size, -size))
        chosen.append(next(t for t in free if lowest <= t <= highest and t not in chosen and t not in taken))
    return [Tick(tick) for tick in sorted(chosen)]
