"""Compute the correlation of TEV with gradient variance, and how well either predicts the end of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trimtab.kinds.signals.findings import Predicted, Related, SignalCost, SignalFindings, SignalRun
from trimtab.kinds.signals.spec import SignalsSpec
from trimtab.kinds.signals.traces import NO_TRACE, Trace, find_trace, save_traces
from trimtab.run.kept import Kept
from trimtab.stats.prediction import Judged, area, gain, judge
from trimtab.stats.rank import mean_correlation, spearman, stratified_spearman
from trimtab.study.arms import text_of
from trimtab.study.bracket import bracketed
from trimtab.study.kind import Evidence
from trimtab.study.labels import Yardstick, failed, label
from trimtab.study.trial import Results, best_of, seed_by_seed

TRACES = "traces.npz"
TEV = ("tev_mean", "tev_std", "tev_over_norm", "tev_over_init", "tev_frequent", "tev_rare", "tev_unseen")
VARIANCES = ("variance", "variance_embedding")
EVERY_LINE = ""
LEAST_READINGS = 6
PREDICTORS: Mapping[str, tuple[str, ...]] = {
    "loss": ("loss",),
    "gradient norm": ("grad_norm",),
    "loss and gradient norm": ("loss", "grad_norm"),
    "TEV": ("tev_mean", "tev_std"),
    "TEV, frequent tokens": ("tev_frequent",),
    "TEV, rare tokens": ("tev_rare",),
    "TEV over init": ("tev_over_init",),
    "TEV over row norm": ("tev_over_norm",),
    "gradient variance": ("variance",),
    "all but TEV": ("loss", "grad_norm", "variance"),
    "loss, gradient norm and TEV": ("loss", "grad_norm", "tev_mean", "tev_std"),
}
BAR = "loss and gradient norm"  # the baseline of the gain: every training loop logs these two
CURVE = tuple(index / 10 for index in range(1, 11))


def analyse(spec: SignalsSpec, evidence: Evidence) -> SignalFindings:
    """Return the findings, from run folders or from the traces that are stored when run folders are removed."""
    results = evidence.results
    kept = Kept(evidence.folder, TRACES)
    runs: list[SignalRun] = []
    for trial in seed_by_seed(results, list(spec.arms)):
        outcome = results[trial]
        name = evidence.run_ids[trial]
        trace = NO_TRACE if outcome is None else find_trace(kept, name, spec.signals.frequent_share)
        yardstick = _yardstick(spec, results, trial.arm)
        outcome_label = label(outcome, trial.tick, yardstick, spec.criterion, spec.criterion.margin)
        runs.append(SignalRun(trial, name, outcome, outcome_label, failed(outcome_label), trace))
    return SignalFindings(
        spec=spec,
        evidence=evidence,
        runs=runs,
        related=_all_related(spec, runs),
        predicted=_predicted(spec, runs),
        costs=_costs(spec, runs),
        warnings=_warnings(spec, runs),
    )


def keep(findings: SignalFindings, folder: Path) -> None:
    """Store the traces of all runs in a single file."""
    save_traces({run.run_id: run.trace for run in findings.runs if run.outcome is not None}, folder / TRACES)


def _yardstick(spec: SignalsSpec, results: Results, arm: str) -> Yardstick:
    """Return the best loss of an arm, and the best loss of all arms with the same held-out text."""
    best = best_of(arm, results)
    same_text = [name for name, other in spec.arms.items() if text_of(other) == text_of(spec.arms[arm])]
    losses = [best_of(name, results).loss for name in same_text]
    reference = min((loss for loss in losses if math.isfinite(loss)), default=math.nan)
    return Yardstick(best.loss if math.isfinite(best.loss) else math.inf, best.tick, reference)


def group_of(spec: SignalsSpec, run: SignalRun) -> tuple[str, str]:
    """Return size and text of a run; signals have a different scale for other sizes and texts."""
    return spec.places[run.trial.arm].size, repr(spec.arms[run.trial.arm].protocol.data)


def stratum_of(spec: SignalsSpec, run: SignalRun) -> tuple[object, ...]:
    """Return what two compared runs have in common: size, text, learning rate, and the optimizer with its settings."""
    return (*group_of(spec, run), run.trial.tick, spec.arms[run.trial.arm].protocol.optimizer)


def _all_related(spec: SignalsSpec, runs: Sequence[SignalRun]) -> list[Related]:
    related: list[Related] = []
    for line in (EVERY_LINE, *spec.lines):
        of_line = [run for run in runs if line in (EVERY_LINE, spec.places[run.trial.arm].line)]
        for against in VARIANCES:
            for signal in TEV if line == EVERY_LINE else TEV[:2]:
                if any(signal in run.trace.signals for run in of_line):
                    related.append(_related(spec, of_line, line, signal, against))
    return related


def _related(spec: SignalsSpec, runs: Sequence[SignalRun], line: str, signal: str, against: str) -> Related:
    """The relations of two signals.

    All runs of a seed begin with the same draws and see the same data, so seeds are resampled, not runs. Relations
    that compare arms resample the arms too.
    """
    pairs = [
        (run.trial.seed, *_together(run.trace, signal, against, spec.signals.from_fraction * _steps(spec, run)))
        for run in runs
    ]
    pairs = [pair for pair in pairs if len(pair[1]) >= LEAST_READINGS]
    levels = [spearman(a, b) for _, a, b in pairs]
    changes = [spearman(np.diff(a), np.diff(b)) for _, a, b in pairs]
    seeds_of_pairs = [seed for seed, *_ in pairs]
    first: list[float] = []
    second: list[float] = []
    groups: list[object] = []
    strata: list[object] = []
    cells: list[object] = []
    seeds: list[int] = []
    arms: list[str] = []
    later = sorted({f for f in spec.signals.fractions if f >= spec.signals.from_fraction} | {1.0})
    for fraction in later:
        for run in runs:
            step = fraction * _steps(spec, run)
            first.append(run.trace.at(signal, step))
            second.append(run.trace.at(against, step))
            groups.append((fraction, *group_of(spec, run)))
            strata.append((fraction, *stratum_of(spec, run)))
            cells.append((fraction, run.trial.arm, run.trial.tick))
            seeds.append(run.trial.seed)
            arms.append(run.trial.arm)
    return Related(
        runs=line,
        signal=signal,
        against=against,
        within=stratified_spearman(first, second, cells, seeds),
        over_time=mean_correlation(levels, seeds_of_pairs),
        of_changes=mean_correlation(changes, seeds_of_pairs),
        across=stratified_spearman(first, second, groups, seeds, arms),
        partial=stratified_spearman(first, second, strata, seeds, arms),
    )


def _steps(spec: SignalsSpec, run: SignalRun) -> int:
    return spec.arms[run.trial.arm].protocol.training.steps


def _together(
    trace: Trace, signal: str, against: str, first_step: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The two signals at the readings from a step on at which both are finite."""
    empty = np.zeros(0)
    a = trace.signals.get(signal, empty)
    b = trace.signals.get(against, empty)
    if len(a) != len(b):
        return empty, empty
    used = np.isfinite(a) & np.isfinite(b) & (trace.steps >= first_step)
    return a[used], b[used]


def _predicted(spec: SignalsSpec, runs: Sequence[SignalRun]) -> list[Predicted]:
    usable = [run for run in runs if run.fails is not None]
    arms = np.array([list(spec.arms).index(run.trial.arm) for run in usable], dtype=np.int64)
    predicted: list[Predicted] = []
    for fraction in sorted({*CURVE, *spec.signals.fractions}):
        judged = {name: _judged(spec, usable, signals, fraction) for name, signals in PREDICTORS.items()}
        bar = judged[BAR]
        for name, one in judged.items():
            if one is None or bar is None:
                continue
            same = arms[one.failing] == arms[one.sound]
            own, own_bar = one.only(same), bar.only(same)
            areas = area(one), gain(one, bar), area(own), gain(own, own_bar)
            predicted.append(Predicted(name, fraction, *areas, one.untrained))
    return predicted


def _judged(spec: SignalsSpec, runs: Sequence[SignalRun], signals: Sequence[str], fraction: float) -> Judged | None:
    rows: list[list[float]] = []
    for run in runs:
        step = fraction * _steps(spec, run)
        rows.append([_logarithm(run.trace.at(signal, step)) for signal in signals])
    if not runs or not np.isfinite(np.array(rows)).any():
        return None
    return judge(
        np.array(rows),
        [bool(run.fails) for run in runs],
        [stratum_of(spec, run) for run in runs],
        [_method_of(spec, run) for run in runs],
        [run.trial.seed for run in runs],
    )


def _method_of(spec: SignalsSpec, run: SignalRun) -> str:
    """Return the slug of the method of a run; the line of the study if the run has no method."""
    return spec.arms[run.trial.arm].method or spec.places[run.trial.arm].line


def _logarithm(value: float) -> float:
    """Return the logarithm of a signal, since signals span decades; 0 becomes log(1e-30), below every signal."""
    return math.log(max(value, 1e-30)) if math.isfinite(value) else math.nan


def _late(spec: SignalsSpec, run: SignalRun) -> NDArray[np.int64]:
    """The readings of a run that are correlated over time."""
    return run.trace.steps[run.trace.steps >= spec.signals.from_fraction * _steps(spec, run)]


def _brackets(spec: SignalsSpec, runs: Sequence[SignalRun]) -> list[str]:
    """Name the arms whose best rate is an end of the grid: what counts as degraded depends on where it ended."""
    results = {run.trial: run.outcome for run in runs}
    best = {arm: best_of(arm, results) for arm in spec.arms}
    ends = [
        arm
        for arm in spec.arms
        if math.isfinite(best[arm].loss) and not bracketed(best[arm].tick, spec.rates_of(arm).sweep())
    ]
    if not ends:
        return []
    return [
        f"best not bracketed: the best rate of {len(ends)} of {len(spec.arms)} arms is an end of the grid; which of "
        f"their runs count as failed depends on where it ended: {', '.join(ends)}"
    ]


def _costs(spec: SignalsSpec, runs: Sequence[SignalRun]) -> dict[str, SignalCost]:
    costs: dict[str, SignalCost] = {}
    for arm in spec.arms:
        times = [run.trace.times for run in runs if run.trial.arm == arm and run.trace.times.get("step", 0) > 0]
        if not times:
            continue
        probes = spec.arms[arm].protocol.probes
        preset = probes.probes()
        assert preset is not None, "the specification requires probes"
        every = probes.every or preset.every
        tev = float(np.median([one.get("tables", 0.0) / one["step"] for one in times]))
        noise = float(np.median([one.get("noise", 0.0) / one["step"] for one in times]))
        step = float(np.median([one["step"] for one in times]))
        costs[arm] = SignalCost(step, tev, noise, tev / every, noise / every)
    return costs


def _warnings(spec: SignalsSpec, runs: Sequence[SignalRun]) -> list[str]:
    lines: list[str] = []
    missing = sum(run.outcome is None for run in runs)
    if missing > 0.05 * len(runs):
        lines.append(f"{missing} of {len(runs)} runs have no outcome because of the machine; they are not counted")
    usable = [run for run in runs if run.fails is not None]
    sweeps = len(spec.ticks()) > 1  # with one rate the study asks for correlations alone
    if sweeps and len({run.fails for run in usable}) < 2:
        lines.append("all runs failed or all succeeded, so that nothing can be predicted; widen learning_rates")
    methods = {_method_of(spec, run) for run in usable}
    if len(methods) < 4:
        lines.append(
            f"there are only {len(methods)} methods: a pair of runs of two methods is judged by a model that is "
            f"fitted to the other {max(0, len(methods) - 2)}"
        )
    lines += _brackets(spec, runs) if sweeps else []
    if not any(len(_late(spec, run)) >= LEAST_READINGS for run in runs):
        lines.append(
            f"no run has {LEAST_READINGS} readings from {spec.signals.from_fraction:.0%} of its steps on, so there are "
            "no correlations over time; lower probes.every"
        )
    if not any(len(run.trace.histogram) for run in runs):
        lines.append(
            "tokens were not kept, so that frequent and rare tokens cannot be separated; set probes.tokens = true"
        )
    return lines
