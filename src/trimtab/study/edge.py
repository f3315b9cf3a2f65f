"""The edge of an arm: the LR at which its runs begin to fail, estimated from labelled runs, and the next LRs to try."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from trimtab.run.folder import Outcome
from trimtab.stats.comparison import clipped_density
from trimtab.stats.graded import SIDE, UNGRADED
from trimtab.stats.posterior import EdgeEvidence, EdgePosterior, grid_quantiles
from trimtab.study.labels import Edge, Label, Yardstick, collapse_line, failed, label
from trimtab.study.settings import Criterion
from trimtab.study.trial import SIXTEENTH, Results, Tick, Trial, order_of

GRADE_SHARE = 0.3  # margins between the lines of two grades


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
    *,
    graded: bool = False,
) -> EdgeEvidence:
    """The labelled runs of one arm, as evidence on one of its edges.

    Args:
        arm: the arm.
        results: the outcomes of the study so far.
        yardstick: the losses that the runs are compared with.
        criterion: the rule of the labels.
        edge: which of the edges.
        margin: a margin other than that of the criterion, in nats.
        graded: whether the distance of a loss from the line of collapse counts too, not only its side.
    """
    margin = margin or criterion.margin
    labelled = [
        (trial, label(results[trial], trial.tick, yardstick, criterion, margin))
        for trial in sorted((trial for trial in results if trial.arm == arm), key=order_of)
    ]
    evidence = trials_of(labelled, edge)
    if not graded or edge is not Edge.COLLAPSE:
        return evidence
    known = [trial for trial, its_label in labelled if failed(its_label, edge) is not None]
    grades = [
        grade_of(results[trial], failure, yardstick, criterion, margin)
        for trial, failure in zip(known, evidence.failed.tolist(), strict=True)
    ]
    return replace(evidence, grade=np.array(grades, np.intp))


def grade_of(outcome: Outcome | None, failure: bool, yardstick: Yardstick, criterion: Criterion, margin: float) -> int:
    """The number of lines below the final loss of a run, see ``trimtab.stats.graded``.

    The lines lie ``GRADE_SHARE`` margins apart, about the line of collapse. A run that failed by something else than
    its loss is ungraded.
    """
    if outcome is None:
        return UNGRADED
    line = collapse_line(outcome.unigram_entropy, yardstick.reference_loss, criterion)
    final = outcome.final_loss if math.isfinite(outcome.final_loss) else math.inf
    grade = sum(final > line + step * GRADE_SHARE * margin for step in range(-SIDE, SIDE + 1))
    return grade if (grade > SIDE) == failure else UNGRADED


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
