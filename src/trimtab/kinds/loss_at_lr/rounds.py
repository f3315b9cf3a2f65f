"""The rounds of a comparison of losses: sweeps that extend themselves, then all arms on the same seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from trimtab.kinds.loss_at_lr.spec import FIRST_TUNING_SEED, LossStudySpec
from trimtab.study.bracket import bracketed, further_rates, swept_by
from trimtab.study.kind import Rounds
from trimtab.study.trial import Best, Results, Tick, Trial, best_of

TUNING = 0
COMPARING = 1


def rounds(spec: LossStudySpec) -> Rounds:
    """Yield the trials of each round; the caller sends the results of all rounds so far."""
    comparison = spec.comparison
    results: Results = {}
    batch = [trial for arm in spec.tuned() for trial in _sweep(spec, arm, spec.rates_of(arm).sweep())]
    while batch:
        results = yield batch
        batch = _extension(spec, results)
    ticks = ticks_of(spec, results)
    # Seed by seed: a study that is interrupted has complete pairs.
    yield [
        Trial(COMPARING, arm, tick, seed)
        for seed in range(comparison.seeds)
        for arm in spec.arms
        for tick in ticks[arm].values()
    ]


def round_name(number: int) -> str:
    """Return 'sweep' or 'comparison'."""
    return "sweep" if number == TUNING else "comparison"


def ticks_of(spec: LossStudySpec, results: Results) -> Mapping[str, Mapping[float, Tick]]:
    """Return the learning rates at which each arm is compared, by multiple."""
    comparison = spec.comparison
    tuned = {
        arm: best.tick if math.isfinite(best.loss) else spec.rates_of(arm).lowest
        for arm, best in _tuned(spec, results).items()
    }

    def base(arm: str) -> int:
        if comparison.tune == "fixed":
            return comparison.offset(comparison.learning_rate)
        return tuned[spec.tuned_by(arm)]

    return {
        arm: {multiple: Tick(base(arm) + comparison.offset(multiple)) for multiple in comparison.multiples}
        for arm in spec.arms
    }


def not_bracketed(spec: LossStudySpec, results: Results) -> dict[str, Tick]:
    """Return the arms whose best rate is the lowest or highest of their sweep, and that rate."""
    return {
        arm: best.tick
        for arm, best in _tuned(spec, results).items()
        if math.isfinite(best.loss) and not bracketed(best.tick, swept_by(arm, results))
    }


def never_tuned(spec: LossStudySpec, results: Results) -> list[str]:
    """Return the arms whose sweep has no run with a finite loss."""
    return [arm for arm, best in _tuned(spec, results).items() if not math.isfinite(best.loss)]


def _sweep(spec: LossStudySpec, arm: str, ticks: Sequence[Tick]) -> list[Trial]:
    seeds = range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + spec.comparison.tuning_seeds)
    return [Trial(TUNING, arm, tick, seed) for seed in seeds for tick in ticks]


def _extension(spec: LossStudySpec, results: Results) -> list[Trial]:
    """Return the next rates of the sweep of every arm whose best rate is not bracketed."""
    trials: list[Trial] = []
    for arm, best in _tuned(spec, results).items():
        swept = swept_by(arm, results)
        lower = not math.isfinite(best.loss) or best.tick == swept[0]
        higher = math.isfinite(best.loss) and best.tick == swept[-1]
        most = spec.comparison.extensions
        ticks = further_rates(spec.rates_of(arm), swept, lower=lower, higher=higher, most=most)
        trials += _sweep(spec, arm, ticks)
    return trials


def _tuned(spec: LossStudySpec, results: Results) -> Mapping[str, Best]:
    tuning = {trial: outcome for trial, outcome in results.items() if trial.round == TUNING}
    return {arm: best_of(arm, tuning) for arm in spec.tuned()}
