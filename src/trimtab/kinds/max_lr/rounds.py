"""The rounds of a search: a coarse sweep, replicates at the best LR of each arm, then probes near the limits.

A round depends on the results of earlier rounds only, never on the order in which runs finish. A study therefore makes
the same runs with any number of workers and after it is resumed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from trimtab.kinds.max_lr.spec import MaxLrSpec
from trimtab.stats.intervals import pooled_sd
from trimtab.stats.posterior import EdgeModel
from trimtab.study.edge import edge_trials, interval_width, one_edge, propose
from trimtab.study.kind import Rounds
from trimtab.study.labels import Yardstick, reference_never_learned
from trimtab.study.trial import Best, Results, Trial, best_of, finals_of, order_of

FIRST_PROBE_SEED = 1000
REPLICATE_REACH = 0.5  # nats above the best loss; a higher loss counts as a failure, not as seed noise


@dataclass(frozen=True, slots=True)
class PhaseOne:
    """The quantities that phase 1 determines; later rounds do not change them.

    Attributes:
        seed_sd: standard deviation of the final loss between seeds at the same LR, pooled over arms, in nats; nan if
            not measured.
        unclear: arms whose failures do not form a single edge in LR.
    """

    best: Mapping[str, Best]
    reference_loss: float
    unigram_entropy: float
    seed_sd: float
    unclear: tuple[str, ...]

    def yardstick(self, arm: str, *, usable: bool = False) -> Yardstick:
        """Return the losses with which the runs of an arm are compared."""
        best = self.best[arm]
        loss = self.reference_loss if usable else best.loss
        return Yardstick(loss if math.isfinite(loss) else math.inf, best.tick, self.reference_loss)

    @property
    def learned(self) -> bool:
        """Whether the best loss of the reference is below unigram entropy."""
        return not reference_never_learned(self.reference_loss, self.unigram_entropy)


def rounds(spec: MaxLrSpec) -> Rounds:
    """Yield the trials of each round; the caller sends the results of all rounds so far."""
    results = yield [
        Trial(0, arm, tick, seed)
        for arm in spec.arms
        for seed in range(spec.search.sweep_seeds)
        for tick in spec.rates_of(arm).sweep()
    ]
    if spec.search.replicates:
        best = {arm: best_of(arm, results) for arm in spec.arms}
        seeds = range(spec.search.sweep_seeds, spec.search.sweep_seeds + spec.search.replicates)
        results = yield [Trial(1, arm, best[arm].tick, seed) for arm in spec.arms for seed in seeds]
    phase = phase_one(spec, results)
    if not phase.learned:
        return
    if spec.search.design == "grid":
        further = _grid(spec)
        if further:
            yield further
        return
    model = edge_model(spec)
    number = 2
    while True:
        probes = _probes(spec, phase, model, results, number)
        if not probes:
            return
        results = yield probes
        number += 1


def round_name(number: int) -> str:
    """Return the name of a round: 'sweep', 'replicates', 'probes 1', ..."""
    return {0: "sweep", 1: "replicates"}.get(number, f"probes {number - 1}")


def edge_model(spec: MaxLrSpec) -> EdgeModel:
    """Return the statistical model of the limits of all arms, each with its tested range."""
    separate = {name: arm.learning_rates for name, arm in spec.arms.items() if arm.learning_rates is not None}
    shared = spec.learning_rates
    if len(separate) == len(spec.arms):  # no arm uses the shared range; it would widen the grid for nothing
        shared = next(iter(separate.values()))
    ranges = {name: (rates.lowest.octave, rates.highest.octave) for name, rates in separate.items()}
    return EdgeModel(shared.lowest.octave, shared.highest.octave, ranges)


def phase_one(spec: MaxLrSpec, results: Results) -> PhaseOne:
    """Compute what the sweep and the replicates determine; runs of later rounds are ignored."""
    early = {trial: outcome for trial, outcome in results.items() if trial.round <= 1}
    best = {arm: best_of(arm, early) for arm in spec.arms}
    reference = best[spec.reference].loss
    of_reference = (early[trial] for trial in sorted(early, key=order_of) if trial.arm == spec.reference)
    entropy = next((outcome.unigram_entropy for outcome in of_reference if outcome is not None), math.nan)
    phase = PhaseOne(best, reference, entropy, _seed_sd(early, best), ())
    unclear = [arm for arm in spec.arms if not one_edge(arm, early, phase.yardstick(arm), spec.criterion)]
    return PhaseOne(best, reference, phase.unigram_entropy, phase.seed_sd, tuple(unclear))


def _probes(spec: MaxLrSpec, phase: PhaseOne, model: EdgeModel, results: Results, number: int) -> list[Trial]:
    search = spec.search
    evidence = {
        arm: edge_trials(arm, results, phase.yardstick(arm), spec.criterion, spec.criterion.margin)
        for arm in spec.arms
        if arm not in phase.unclear
    }
    probes: list[Trial] = []
    for arm, posterior in model.fit(evidence).items():
        spent = sum(trial.arm == arm for trial in results)
        # A round is made whole or not at all, so that a study with a larger cap asks for the same runs again.
        if spent + search.probes_per_round > search.most_runs or interval_width(posterior) < search.enough:
            continue
        used = sum(trial.arm == arm and trial.round >= 2 for trial in results)
        ticks = propose(posterior, search.probes_per_round)
        probes += [Trial(number, arm, tick, FIRST_PROBE_SEED + used + i) for i, tick in enumerate(ticks)]
    return probes


def _grid(spec: MaxLrSpec) -> list[Trial]:
    trials: list[Trial] = []
    for arm in spec.arms:
        sweep = spec.rates_of(arm).sweep()
        seeds = (spec.search.most_runs - spec.first_runs_of(arm)) // len(sweep)
        trials += [Trial(2, arm, tick, FIRST_PROBE_SEED + seed) for seed in range(seeds) for tick in sweep]
    return trials


def _seed_sd(results: Results, best: Mapping[str, Best]) -> float:
    groups = [
        [loss for loss in losses if loss <= best[arm].loss + REPLICATE_REACH]
        for arm in best
        for losses in finals_of(arm, results).values()
    ]
    return pooled_sd([group for group in groups if len(group) > 1])
