"""Which runs a study of signals makes: every arm at every rate with every seed, at once."""

from __future__ import annotations

from trimtab.kinds.signals.spec import SignalsSpec
from trimtab.study.kind import Rounds
from trimtab.study.trial import Trial


def rounds(spec: SignalsSpec) -> Rounds:
    """Yield the trials of the one round; seed by seed, so that a study cut short has whole grids."""
    yield [
        Trial(0, arm, tick, seed)
        for seed in range(spec.signals.seeds)
        for arm in spec.arms
        for tick in spec.rates_of(arm).sweep()
    ]


def round_name(number: int) -> str:
    """What a display calls it."""
    return "grid"
