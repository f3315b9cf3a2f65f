"""Which runs a comparison of losses makes: first the sweeps that tune the rate, then every arm on the same seeds."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence

from trimtab.study.loss_at_lr.spec import FIRST_TUNING_SEED, LossStudySpec
from trimtab.study.search import Best, Results, Trial, best_of

TUNING, COMPARING = 0, 1


def rounds(spec: LossStudySpec) -> Generator[Sequence[Trial], Results, None]:
    """Yield the trials of each round; send the results of all rounds so far."""
    comparison = spec.comparison
    results: Results = {}
    tuned = spec.tuned()
    if tuned:
        seeds = range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + comparison.tuning_seeds)
        results = yield [
            Trial(TUNING, arm, tick, seed) for arm in tuned for seed in seeds for tick in spec.learning_rates.sweep()
        ]
    ticks = ticks_of(spec, results)
    # Seed by seed, so that a study cut short has whole pairs.
    yield [
        Trial(COMPARING, arm, tick, seed)
        for seed in range(comparison.seeds)
        for arm in spec.arms
        for tick in ticks[arm].values()
    ]


def round_name(number: int) -> str:
    """'sweep' or 'comparison'."""
    return "sweep" if number == TUNING else "comparison"


def ticks_of(spec: LossStudySpec, results: Results) -> Mapping[str, Mapping[float, int]]:
    """The rates at which each arm is compared, by multiple, in sixteenths of an octave."""
    comparison = spec.comparison
    lowest = spec.learning_rates.ticks_low
    base = {arm: best.tick if math.isfinite(best.loss) else lowest for arm, best in _tuned(spec, results).items()}
    given = comparison.offset(comparison.learning_rate) if comparison.tune == "nobody" else 0
    return {
        arm: {
            multiple: (given if comparison.tune == "nobody" else base[spec.tuned_by(arm)]) + comparison.offset(multiple)
            for multiple in comparison.multiples
        }
        for arm in spec.arms
    }


def tuned_at_an_end(spec: LossStudySpec, results: Results) -> list[str]:
    """The arms whose best rate is the lowest or the highest of the sweep, so that it may lie beyond."""
    sweep = spec.learning_rates.sweep()
    found = _tuned(spec, results)
    return [arm for arm, best in found.items() if math.isfinite(best.loss) and best.tick in (sweep[0], sweep[-1])]


def never_tuned(spec: LossStudySpec, results: Results) -> list[str]:
    """The arms of whose sweep nothing finite came back."""
    return [arm for arm, best in _tuned(spec, results).items() if not math.isfinite(best.loss)]


def _tuned(spec: LossStudySpec, results: Results) -> Mapping[str, Best]:
    tuning = {trial: outcome for trial, outcome in results.items() if trial.round == TUNING}
    return {arm: best_of(arm, tuning) for arm in spec.tuned()}
