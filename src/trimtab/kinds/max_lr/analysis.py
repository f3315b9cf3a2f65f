"""Compute the learning-rate limits of each arm, under every criterion, from the outcomes of a search."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trimtab.kinds.max_lr.findings import (
    ArmFindings,
    CriterionFindings,
    CriterionName,
    Estimate,
    LabelledRun,
    LimitFindings,
    Posterior,
)
from trimtab.kinds.max_lr.ratios import INTERVAL, limit_of, ratio_of
from trimtab.kinds.max_lr.rounds import PhaseOne, edge_model, phase_one
from trimtab.kinds.max_lr.spec import MaxLrSpec
from trimtab.kinds.max_lr.warnings import warnings_of
from trimtab.run.folder import Outcome
from trimtab.stats.comparison import clipped_density, difference, holm, smallest_visible_shift
from trimtab.stats.isotonic import centred_isotonic_level
from trimtab.stats.posterior import EdgeEvidence, EdgeModel, EdgePosterior, Floats
from trimtab.stats.sensitivity import lr_sensitivity
from trimtab.study.edge import one_edge, trials_of
from trimtab.study.kind import Evidence
from trimtab.study.labels import Label, label
from trimtab.study.trial import Results, order_of

CRITERIA: Mapping[CriterionName, float] = {"half_d": 0.5, "d": 1.0, "double_d": 2.0, "strict": 1.0}


def analyse(spec: MaxLrSpec, evidence: Evidence) -> LimitFindings:
    """Return the findings of a study of limits."""
    results = evidence.results
    phase = phase_one(spec, results)
    order = list(spec.arms)
    runs = [
        LabelledRun(
            t,
            evidence.run_ids[t],
            label(results[t], t.tick, phase.yardstick(t.arm), spec.criterion, spec.criterion.margin),
            results[t],
        )
        for t in sorted(results, key=lambda t: (order.index(t.arm), order_of(t)))
    ]
    model = edge_model(spec)
    tables: dict[CriterionName, _Table] = {name: _criterion(spec, phase, results, model, name) for name in CRITERIA}
    arms = {arm: _arm(spec, phase, runs, arm, tables) for arm in spec.arms}
    outcomes = [run.outcome for run in runs if run.outcome is not None]
    return LimitFindings(
        spec=spec,
        evidence=evidence,
        learned=phase.learned,
        reference_loss=phase.reference_loss,
        unigram_entropy=phase.unigram_entropy,
        log_vocab=outcomes[0].log_vocab if outcomes else math.nan,
        seed_sd=phase.seed_sd,
        arms=arms,
        runs=runs,
        warnings=warnings_of(spec, phase, runs, arms),
    )


def limit_draws(arm: ArmFindings, spec: MaxLrSpec, name: str, number: int, rng: np.random.Generator) -> Floats:
    """Draw log2 LR50 from the posterior of an arm; a value outside the tested range is moved to the nearest end."""
    grid, weight = np.array(arm.posterior.log2_lr50), np.array(arm.posterior.probability)
    rates = spec.rates_of(name)
    posterior = EdgePosterior(grid, weight[:, None], rates.lowest.octave, rates.highest.octave)
    return np.asarray(rng.choice(grid, number, p=clipped_density(posterior, 0.5)), dtype=np.float64)


@dataclass(frozen=True)
class _Table:
    """The results of all arms under one criterion."""

    breaks: Mapping[str, EdgePosterior]  # only of arms whose failures form a single edge
    trials: Mapping[str, EdgeEvidence]
    findings: Mapping[str, CriterionFindings]


def _criterion(spec: MaxLrSpec, phase: PhaseOne, results: Results, model: EdgeModel, name: CriterionName) -> _Table:
    margin = spec.criterion.margin * CRITERIA[name]
    strict = name == "strict"
    trials = {arm: _evidence(spec, phase, results, arm, margin, strict=strict) for arm in spec.arms}
    usable_trials = {arm: _evidence(spec, phase, results, arm, margin, strict=strict, usable=True) for arm in spec.arms}
    unclear = {
        arm
        for arm in spec.arms
        if phase.learned and not strict and not one_edge(arm, results, phase.yardstick(arm), spec.criterion, margin)
    }
    breaks = model.fit({arm: t for arm, t in trials.items() if arm not in unclear})
    usable = model.fit({arm: t for arm, t in usable_trials.items() if arm not in unclear})
    reference = spec.reference
    ratios = {
        arm: difference(breaks[arm], breaks[reference])
        for arm in breaks
        if arm != reference
        and reference in breaks
        and spec.comparable(arm)
        and len(trials[arm].x)
        and len(trials[reference].x)
    }
    adjusted = holm({arm: ratio.p_value for arm, ratio in ratios.items()})
    findings = {
        arm: CriterionFindings(
            breaks=limit_of(breaks.get(arm), trials[arm]),
            usable=limit_of(usable.get(arm), usable_trials[arm]),
            ratio=ratio_of(arm, reference, breaks, trials, spec.comparable(arm)),
            p_value=ratios[arm].p_value if arm in ratios else None,
            p_holm=adjusted.get(arm),
        )
        for arm in spec.arms
    }
    return _Table(breaks, trials, findings)


def _evidence(
    spec: MaxLrSpec, phase: PhaseOne, results: Results, arm: str, margin: float, *, strict: bool, usable: bool = False
) -> EdgeEvidence:
    if not phase.learned:
        return EdgeEvidence.of([])
    yardstick = phase.yardstick(arm, usable=usable)
    of_arm = [trial for trial in sorted(results, key=order_of) if trial.arm == arm]
    labelled = [(t, label(results[t], t.tick, yardstick, spec.criterion, margin)) for t in of_arm]
    return trials_of(labelled, strict=strict)


def _arm(
    spec: MaxLrSpec, phase: PhaseOne, runs: Sequence[LabelledRun], arm: str, tables: Mapping[CriterionName, _Table]
) -> ArmFindings:
    of_arm = [run for run in runs if run.trial.arm == arm]
    counted = Counter(run.label.value for run in of_arm)
    by_tick: dict[int, list[Outcome]] = {}
    for run in of_arm:
        if run.trial.round == 0 and run.outcome is not None:
            by_tick.setdefault(run.trial.tick, []).append(run.outcome)
    finals = [sum(o.final_loss for o in outcomes) / len(outcomes) for _, outcomes in sorted(by_tick.items())]
    initial = next((o.initial_loss for outcomes in by_tick.values() for o in outcomes), math.nan)
    main = tables["d"]
    posterior = main.breaks.get(arm)
    reference = main.breaks.get(spec.reference)
    compared = posterior is not None and reference is not None and arm != spec.reference and spec.comparable(arm)
    return ArmFindings(
        method=spec.arms[arm].method,
        best_loss=phase.best[arm].loss,
        best_lr=phase.best[arm].tick.learning_rate,
        lr_sensitivity=lr_sensitivity(finals, initial),
        counts={name.value: counted[name.value] for name in Label},
        criteria={name: table.findings[arm] for name, table in tables.items()},
        visible_shift=smallest_visible_shift(posterior, reference) if compared and posterior and reference else None,
        isotonic_lr50=2.0 ** centred_isotonic_level(main.trials[arm]) if posterior else None,
        edge_width=_width(posterior) if posterior else None,
        posterior=Posterior(tuple(posterior.x50.tolist()), tuple(posterior.density().tolist()))
        if posterior
        else Posterior(),
    )


def _width(posterior: EdgePosterior) -> Estimate:
    low, median, high = (float(x) for x in posterior.width_quantiles(INTERVAL))
    return Estimate(median, low, high)
