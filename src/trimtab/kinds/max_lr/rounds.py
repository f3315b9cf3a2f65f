"""The rounds of a search: a sweep that extends itself, replicates at the best LR of each arm, then probes at two edges.

A round depends on the results of earlier rounds only, never on the order in which runs finish. A study therefore makes
the same runs with any number of workers and after it is resumed.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence

from trimtab.kinds.max_lr.allowance import Allowance
from trimtab.kinds.max_lr.at_limit import AT_LIMIT, MOVED, runs_at_limit
from trimtab.kinds.max_lr.confirmation import CONFIRMATION, confirmation_trials
from trimtab.kinds.max_lr.fits import fit_edge
from trimtab.kinds.max_lr.phase import PROBED, PhaseOne, edge_model, has_collapsed, phase_one
from trimtab.kinds.max_lr.spec import MaxLrSpec
from trimtab.stats.posterior import EdgeEvidence, EdgeModel, EdgePosterior
from trimtab.study.bracket import further_rates, neighbours
from trimtab.study.edge import edge_trials, interval_width, propose
from trimtab.study.kind import Rounds
from trimtab.study.labels import Edge, Yardstick
from trimtab.study.trial import EARLIER, Results, Tick, Trial, best_of

FIRST_PROBE_SEED = 1000


def rounds(spec: MaxLrSpec) -> Rounds:
    """Yield the trials of each round; the caller sends the results of all rounds so far."""
    results = dict((yield from _search(spec)))  # what follows is no evidence for the limits
    if trials := confirmation_trials(spec, results):
        yield trials
    yield from runs_at_limit(spec, results)


def _search(spec: MaxLrSpec) -> Generator[Sequence[Trial], Results, Results]:
    batch = [trial for arm in spec.arms for trial in _sweep(spec, arm, spec.first_rates_of(arm))]
    results: Results = {}
    while batch:
        results = yield batch
        batch = _extension(spec, results)
    if spec.search.replicates:
        best = {arm: best_of(arm, results) for arm in spec.arms}
        seeds = range(spec.search.sweep_seeds, spec.search.sweep_seeds + spec.search.replicates)
        results = yield [Trial(1, arm, best[arm].tick, seed) for arm in spec.arms for seed in seeds]
        while batch := _extension(spec, results):  # replicates may move the best to an end of the sweep
            results = yield batch
    phase = phase_one(spec, results)
    if not phase.learned:
        return results
    if spec.search.design == "grid":
        if further := _grid(spec, phase, results):
            results = yield further
        return results
    model = edge_model(spec, phase)
    allowances = {arm: _allowance(spec, results, arm) for arm in spec.arms}
    number = 2
    while True:
        fits = {edge: _fit(spec, phase, model, results, edge) for edge in PROBED}
        probes = [
            probe
            for arm in spec.arms
            for probe in _probes(spec, arm, {edge: fits[edge].get(arm) for edge in PROBED}, allowances[arm], number)
        ]
        if not probes:
            return results
        results = yield probes
        number += 1


def round_name(number: int) -> str:
    """Return the name of a round: 'sweep', 'replicates', 'probes 1', ..., 'confirmation', 'at the limit'."""
    if EARLIER <= number < CONFIRMATION:
        return f"probes {number - EARLIER - 1} of an earlier version"
    named = {0: "sweep", 1: "replicates", CONFIRMATION: "confirmation", AT_LIMIT: "at the limit", MOVED: "moved rate"}
    return named.get(number, f"probes {number - 1}")


def _sweep(spec: MaxLrSpec, arm: str, ticks: tuple[Tick, ...] | list[Tick]) -> list[Trial]:
    return [Trial(0, arm, tick, seed) for seed in range(spec.search.sweep_seeds) for tick in ticks]


def _extension(spec: MaxLrSpec, results: Results) -> list[Trial]:
    """Return the next rates of the sweep of every arm that has not bracketed its best, or has not collapsed."""
    phase = phase_one(spec, results)
    trials: list[Trial] = []
    for arm in spec.arms:
        best, swept = phase.best[arm], phase.swept[arm]
        lower = not math.isfinite(best.loss) or best.tick == swept[0]
        higher = math.isfinite(best.loss) and (
            best.tick == swept[-1] or (phase.learned and not has_collapsed(spec, phase, results, arm))
        )
        ticks = further_rates(spec.rates_of(arm), swept, lower=lower, higher=higher, most=spec.search.extensions)
        if math.isfinite(best.loss):
            ticks += neighbours(spec.rates_of(arm), swept, best.tick)
        trials += _sweep(spec, arm, ticks)
    return trials


def _allowance(spec: MaxLrSpec, results: Results, arm: str) -> Allowance:
    search = spec.search
    left = search.most_runs - sum(trial.arm == arm for trial in results)
    share = {Edge.QUALITY: 1 - search.share_collapse, Edge.COLLAPSE: search.share_collapse}
    return Allowance(left, share, search.probes_per_round)


def _fit(
    spec: MaxLrSpec, phase: PhaseOne, model: EdgeModel, results: Results, edge: Edge
) -> Mapping[str, EdgePosterior]:
    def evidence(arm: str, yardstick: Yardstick) -> EdgeEvidence:
        return edge_trials(arm, results, yardstick, spec.criterion, edge, graded=spec.search.graded)

    return fit_edge(model, phase, [arm for arm in spec.arms if phase.has_edge(arm, edge)], edge, evidence)


def _probes(
    spec: MaxLrSpec, arm: str, posteriors: Mapping[Edge, EdgePosterior | None], allowance: Allowance, number: int
) -> list[Trial]:
    """Return the probes of an arm in a round: at the edge of quality, then at the edge of collapse."""
    wide = {edge: p for edge, p in posteriors.items() if p is not None and interval_width(p) >= spec.search.enough}
    seed = FIRST_PROBE_SEED + sum(allowance.spent.values())
    ticks: list[Tick] = []
    for edge in allowance.next_edges(wide):
        ticks += propose(wide[edge], spec.search.probes_per_round, ticks)
    return [Trial(number, arm, tick, seed + i) for i, tick in enumerate(ticks)]


def _grid(spec: MaxLrSpec, phase: PhaseOne, results: Results) -> list[Trial]:
    trials: list[Trial] = []
    for arm in spec.arms:
        sweep = phase.swept[arm]
        seeds = (spec.search.most_runs - sum(trial.arm == arm for trial in results)) // len(sweep)
        trials += [Trial(2, arm, tick, FIRST_PROBE_SEED + seed) for seed in range(seeds) for tick in sweep]
    return trials
