"""Compute the difference of each arm to the reference over seeds and text, and the tokens and compute it saves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from trimtab.kinds.loss_at_lr.findings import Compared, ComparedRun, LossFindings, Mean, Slope, row_of
from trimtab.kinds.loss_at_lr.rounds import COMPARING, never_tuned, ticks_of, tuned_at_an_end
from trimtab.kinds.loss_at_lr.savings import saving_of
from trimtab.kinds.loss_at_lr.spec import LossStudySpec
from trimtab.run.cost import ModelCost
from trimtab.stats.comparison import holm
from trimtab.stats.intervals import mean_interval
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
    compared = [_compared(spec, cells, costs, name, multiple, ticks[name][multiple]) for name, multiple in cells]
    compared = _with_holm(spec, compared)
    return LossFindings(
        spec=spec,
        evidence=evidence,
        compared=compared,
        slopes=_slopes(spec, cells),
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
    spec: LossStudySpec, cells: Cells, costs: Mapping[str, ModelCost], name: str, multiple: float, tick: Tick
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
            per_seed: list[float] = []
            for seed in range(spec.comparison.seeds):
                losses = [cells[spec.name_of(line, size), multiple][seed].loss for size in spec.size_names]
                reference = [cells[spec.name_of(spec.reference, size), multiple][seed].loss for size in spec.size_names]
                gap = np.subtract(losses, reference)
                if np.isfinite(gap).all():
                    per_seed.append(float(centred @ gap / (centred @ centred)))
            slopes.append(Slope(line, multiple, Mean(*mean_interval(per_seed))))
    return slopes


def _warnings(
    spec: LossStudySpec, results: Results, runs: Sequence[ComparedRun], compared: Sequence[Compared]
) -> list[str]:
    lines = [
        f"the best learning rate of '{arm}' is at an end of the swept range; widen learning_rates"
        for arm in tuned_at_an_end(spec, results)
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
