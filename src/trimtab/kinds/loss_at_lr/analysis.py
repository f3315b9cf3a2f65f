"""Compute the difference of each arm to the reference over seeds and text, and the tokens and compute it saves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from trimtab.kinds.loss_at_lr.findings import Compared, ComparedRun, LossFindings, Mean, Overall, Slope, row_of
from trimtab.kinds.loss_at_lr.rounds import COMPARING, never_tuned, not_bracketed, ticks_of
from trimtab.kinds.loss_at_lr.savings import saving_of
from trimtab.kinds.loss_at_lr.spec import LossStudySpec
from trimtab.run.cost import ModelCost
from trimtab.stats.comparison import holm
from trimtab.stats.intervals import mean_interval, smallest_visible_mean
from trimtab.stats.paired import paired_difference
from trimtab.study.kind import Evidence
from trimtab.study.trial import Results, Tick, Trial

LARGEST_EXPONENT = 700.0


def analyse(spec: LossStudySpec, evidence: Evidence) -> LossFindings:
    """Return the findings of a comparison, from outcomes and block losses; an absent run counts as missing."""
    order = list(spec.arms)
    runs = [
        _run(spec, evidence, trial)
        for trial in sorted(evidence.results, key=lambda t: (t.round, order.index(t.arm), t.tick, t.seed))
    ]
    ticks = ticks_of(spec, evidence.results)
    costs = {name: evidence.cost(name) for name in spec.arms}
    made = {(run.trial.arm, run.trial.tick, run.trial.seed): run for run in runs if run.trial.round == COMPARING}
    cells = {
        (name, multiple): [
            made.get((name, tick, seed)) or _absent(Trial(COMPARING, name, tick, seed))
            for seed in range(spec.comparison.seeds)
        ]
        for name in spec.arms
        for multiple, tick in ticks[name].items()
    }
    ends = not_bracketed(spec, evidence.results)
    bracketed = {name: None if spec.comparison.tune == "fixed" else spec.tuned_by(name) not in ends for name in ticks}
    compared = [
        _compared(spec, cells, costs, name, multiple, ticks[name][multiple], bracketed[name])
        for name, multiple in cells
    ]
    compared = _with_holm(spec, compared)
    return LossFindings(
        spec=spec,
        evidence=evidence,
        compared=compared,
        slopes=_slopes(spec, cells),
        overall=_overall(spec, cells),
        costs=costs,
        runs=runs,
        warnings=_warnings(spec, evidence.results, runs, compared),
    )


def _run(spec: LossStudySpec, evidence: Evidence, trial: Trial) -> ComparedRun:
    name = evidence.run_ids[trial]
    margin = spec.arms[trial.arm].protocol.evaluation.explosion_margin
    return ComparedRun(trial, name, evidence.results[trial], evidence.blocks(name), margin)


def _absent(trial: Trial) -> ComparedRun:
    return ComparedRun(trial, "", None, {}, 0.0)


Cells = Mapping[tuple[str, float], Sequence[ComparedRun]]


def _compared(
    spec: LossStudySpec,
    cells: Cells,
    costs: Mapping[str, ModelCost],
    name: str,
    multiple: float,
    tick: Tick,
    bracketed: bool | None,
) -> Compared:
    runs, place = cells[name, multiple], spec.places[name]
    sound = [run for run in runs if run.sound]
    loss = Mean(*mean_interval([run.loss for run in sound]))
    per_token = next((run.outcome.bytes_per_token for run in sound if run.outcome is not None), math.nan)
    texts = {text: float(np.mean([run.blocks[text] for run in sound])) for text in (sound[0].blocks if sound else ())}
    reference = spec.name_of(spec.reference, place.size)
    pairs = [
        (run, partner)
        for run, partner in zip(runs, cells[reference, multiple], strict=True)
        if run.sound and partner.sound
    ]
    comparable = bool(pairs) and len(row_of(pairs[0][0].blocks)) > 1
    is_reference = place.line == spec.reference
    split = [text for text in texts if comparable and not is_reference and len(pairs[0][0].blocks[text]) > 1]
    return Compared(
        name=name,
        place=place,
        multiple=multiple,
        learning_rate=tick.learning_rate,
        bracketed=bracketed,
        broken=sum(run.outcome is not None and not run.sound for run in runs),
        missing=sum(run.outcome is None for run in runs),
        loss=loss,
        perplexity=math.exp(loss.mean) if not loss.mean > LARGEST_EXPONENT else math.inf,
        bits_per_byte=loss.mean / math.log(2) / per_token,
        by_text=texts,
        difference=None if is_reference or not comparable else paired_difference(_differences(pairs)),
        difference_by_text={text: paired_difference(_differences(pairs, text)) for text in split},
        p_holm=None,
        saving=None if is_reference else saving_of(spec, pairs, costs[name], costs[reference]),
        curve=_mean_curve(sound),
    )


def _differences(pairs: Sequence[tuple[ComparedRun, ComparedRun]], text: str = "") -> NDArray[np.float64]:
    return np.array([np.subtract(row_of(run.blocks, text), row_of(partner.blocks, text)) for run, partner in pairs])


def _mean_curve(runs: Sequence[ComparedRun]) -> list[tuple[int, float]]:
    by_step: dict[int, list[float]] = {}
    for run in runs:
        for step, loss in run.outcome.held_out if run.outcome is not None else ():
            by_step.setdefault(step, []).append(loss)
    return [(step, sum(losses) / len(losses)) for step, losses in sorted(by_step.items())]


def _with_holm(spec: LossStudySpec, compared: Sequence[Compared]) -> list[Compared]:
    adjusted: dict[tuple[str, float], float] = {}
    for size in spec.size_names:
        for multiple in spec.comparison.multiples:
            p_values = {
                one.name: one.difference.p_value
                for one in compared
                if (one.place.size, one.multiple) == (size, multiple)
                and one.difference is not None
                and math.isfinite(one.difference.p_value)
            }
            adjusted |= {(name, multiple): p for name, p in holm(p_values).items()}
    return [replace(one, p_holm=adjusted.get((one.name, one.multiple))) for one in compared]


def _slopes(spec: LossStudySpec, cells: Cells) -> list[Slope]:
    """Fit, for each seed, a straight line to the differences at all sizes against log2 of the number of blocks."""
    if len(spec.size_names) < 2:
        return []
    models = [spec.arms[spec.name_of(spec.reference, size)].protocol.model for size in spec.size_names]
    depth = np.log2([model.num_layers for model in models])
    if np.ptp(depth) == 0:
        return []
    centred = depth - depth.mean()
    slopes: list[Slope] = []
    for line in spec.lines:
        for multiple in spec.comparison.multiples if line != spec.reference else ():
            per_seed = [float(centred @ gap / (centred @ centred)) for gap in _gaps(spec, cells, line, multiple)]
            slopes.append(Slope(line, multiple, Mean(*mean_interval(per_seed)), smallest_visible_mean(per_seed)))
    return slopes


def _overall(spec: LossStudySpec, cells: Cells) -> list[Overall]:
    """Average, for each seed, the differences at all sizes."""
    if len(spec.size_names) < 2:
        return []
    found: list[Overall] = []
    for line in spec.lines:
        for multiple in spec.comparison.multiples if line != spec.reference else ():
            per_seed = [float(gap.mean()) for gap in _gaps(spec, cells, line, multiple)]
            found.append(Overall(line, multiple, Mean(*mean_interval(per_seed)), smallest_visible_mean(per_seed)))
    return found


def _gaps(spec: LossStudySpec, cells: Cells, line: str, multiple: float) -> list[NDArray[np.float64]]:
    """The differences of a line to the reference at all sizes, for each seed that has all of them."""
    gaps: list[NDArray[np.float64]] = []
    for seed in range(spec.comparison.seeds):
        losses = [cells[spec.name_of(line, size), multiple][seed].loss for size in spec.size_names]
        reference = [cells[spec.name_of(spec.reference, size), multiple][seed].loss for size in spec.size_names]
        gaps.append(np.subtract(losses, reference))
    return [gap for gap in gaps if np.isfinite(gap).all()]


def _tuning(spec: LossStudySpec) -> list[str]:
    """Return warnings about the choice of the learning rate."""
    comparison = spec.comparison
    if comparison.tune == "fixed":
        return ["the learning rate was not tuned; an arm with another best rate is not compared at its best"]
    lines: list[str] = []
    if comparison.tune == "reference" and len(spec.lines) > 1:
        lines.append(
            f"the learning rate was tuned for '{spec.reference}' alone; an arm with another best rate is not compared "
            'at its best; tune = "arm" tunes every arm'
        )
    if comparison.at_size:
        lines.append(
            f"the learning rate was tuned at '{comparison.at_size}' alone; other sizes may have another best rate; "
            'at_size = "" tunes every size'
        )
    if comparison.tuning_seeds == 1:
        lines.append("the learning rate was tuned with one seed; the choice between neighbouring rates may be chance")
    return lines


def _warnings(
    spec: LossStudySpec, results: Results, runs: Sequence[ComparedRun], compared: Sequence[Compared]
) -> list[str]:
    lines = _tuning(spec)
    lines += [
        f"best not bracketed: the best rate of '{arm}', {tick.learning_rate:.3g}, is an end of its sweep; the "
        "comparison at this rate depends on the range of the sweep; widen learning_rates"
        for arm, tick in not_bracketed(spec, results).items()
    ]
    lines += [
        f"no run of the sweep of '{arm}' ended with a finite loss; its learning rate is the lowest of the sweep"
        for arm in never_tuned(spec, results)
    ]
    missing = sum(run.outcome is None for run in runs)
    if missing > 0.05 * len(runs):
        lines.append(f"{missing} of {len(runs)} runs have no outcome because of the machine; they are not counted")
    seeds = spec.comparison.seeds
    broken = [f"{one.name} at {one.multiple:g}x ({one.broken} of {seeds})" for one in compared if one.broken]
    if broken:
        lines.append(f"broken runs, which means and differences leave out: {'; '.join(broken)}")
    return lines
