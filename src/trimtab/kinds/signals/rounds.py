"""The round of a study of signals: every arm at every learning rate with every seed."""

from __future__ import annotations

from trimtab.kinds.signals.spec import SignalsSpec
from trimtab.study.kind import Rounds
from trimtab.study.trial import Trial


def rounds(spec: SignalsSpec) -> Rounds:
    """Yield the trials of the only round, seed by seed: a study that is interrupted has complete grids."""
    yield [
        Trial(0, arm, tick, seed)
        for seed in range(spec.signals.seeds)
        for arm in spec.arms
        for tick in spec.rates_of(arm).sweep()
    ]


def round_name(number: int) -> str:
    """Return the name of the round."""
    return "grid"
