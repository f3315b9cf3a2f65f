"""Compute the learning-rate limits of each arm, at two edges and by other criteria, from the outcomes of a search."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from trimtab.kinds.max_lr.confirmation import CONFIRMATION, confirmed
from trimtab.kinds.max_lr.criteria import RULES, Limits, limits_of, pairs_of
from trimtab.kinds.max_lr.edges import edges_of
from trimtab.kinds.max_lr.findings import (
    MAIN,
    ArmFindings,
    CriterionFindings,
    CriterionName,
    EdgeFindings,
    EdgeName,
    LabelledRun,
    LimitFindings,
    Pair,
)
from trimtab.kinds.max_lr.phase import PhaseOne, edge_model, phase_one
from trimtab.kinds.max_lr.spec import MaxLrSpec
from trimtab.kinds.max_lr.warnings import warnings_of
from trimtab.stats.posterior import Floats
from trimtab.stats.sensitivity import lr_sensitivity
from trimtab.study.kind import Evidence
from trimtab.study.labels import Label, label
from trimtab.study.trial import finals_of, order_of


def analyse(spec: MaxLrSpec, evidence: Evidence) -> LimitFindings:
    """Return the findings of a study of limits."""
    results = {trial: outcome for trial, outcome in evidence.results.items() if trial.round < CONFIRMATION}
    phase = phase_one(spec, results)
    order = list(spec.arms)
    runs = [
        LabelledRun(
            t,
            evidence.run_ids[t],
            label(evidence.results[t], t.tick, phase.yardstick(t.arm), spec.criterion, spec.criterion.margin),
            evidence.results[t],
        )
        for t in sorted(evidence.results, key=lambda t: (order.index(t.arm), order_of(t)))
    ]
    model = edge_model(spec, phase)
    tables: dict[CriterionName, Limits] = {
        name: limits_of(spec, phase, results, model, rule) for name, rule in RULES.items()
    }
    pairs: dict[EdgeName, list[Pair]] = {edge: pairs_of(spec, tables[main]) for edge, main in MAIN.items()}
    probed = [run for run in runs if run.trial.round < CONFIRMATION]
    edges = {edge: edges_of(spec, phase, probed, tables[main], pairs[edge]) for edge, main in MAIN.items()}
    arms = {arm: _arm(spec, phase, runs, arm, tables, {e: edges[e][arm] for e in MAIN}) for arm in spec.arms}
    outcomes = [run.outcome for run in runs if run.outcome is not None]
    return LimitFindings(
        spec=spec,
        evidence=evidence,
        learned=phase.learned,
        reference_loss=phase.reference_loss,
        unigram_entropy=phase.unigram_entropy,
        log_vocab=outcomes[0].log_vocab if outcomes else math.nan,
        seed_sd=phase.seed_sd,
        collapse_line=phase.line(spec) if phase.learned else math.nan,
        pairs=pairs,
        confirmed=confirmed({e: tables[main].findings for e, main in MAIN.items()}, runs, spec.reference),
        arms=arms,
        runs=runs,
        warnings=warnings_of(spec, phase, runs, arms),
    )


def limit_draws(arm: ArmFindings, edge: EdgeName, number: int, rng: np.random.Generator) -> Floats:
    """Draw log2 LR50 from the posterior of an arm; a value outside the tested range is moved to the nearest end."""
    posterior = arm.edges[edge].posterior
    grid, weight = np.array(posterior.log2_lr50), np.array(posterior.probability)
    low, high = (math.log2(rate) for rate in arm.tested)
    return np.clip(rng.choice(grid, number, p=weight / weight.sum()), low, high).astype(np.float64)


def _arm(
    spec: MaxLrSpec,
    phase: PhaseOne,
    runs: Sequence[LabelledRun],
    arm: str,
    tables: Mapping[CriterionName, Limits],
    edges: Mapping[EdgeName, EdgeFindings],
) -> ArmFindings:
    of_arm = {run.trial: run.outcome for run in runs if run.trial.arm == arm}
    counted = Counter(run.label.value for run in runs if run.trial.arm == arm)
    best, swept = phase.best[arm], phase.swept[arm]
    initial = next((outcome.initial_loss for outcome in of_arm.values() if outcome is not None), math.nan)
    finals = {tick.octave: losses for tick, losses in finals_of(arm, of_arm).items()}
    criteria: dict[CriterionName, CriterionFindings] = {name: table.findings[arm] for name, table in tables.items()}
    quality, collapse = (criteria[main].breaks.lr50 for main in MAIN.values())
    both = quality.bound is None and collapse.bound is None
    return ArmFindings(
        method=spec.arms[arm].method,
        best_loss=best.loss,
        best_lr=best.tick.learning_rate,
        bracketed=phase.bracketed(arm),
        tested=(swept[0].learning_rate, swept[-1].learning_rate),
        one_edge=both and (quality.estimate or 0.0) >= (collapse.estimate or math.inf),
        lr_sensitivity=lr_sensitivity(finals, initial, best.loss, best.tick.octave),
        counts={name.value: counted[name.value] for name in Label},
        criteria=criteria,
        edges=edges,
    )
