"""Which runs a study of signals makes: every arm at every rate with every seed, at once."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from trimtab.study.search import Results, Trial
from trimtab.study.signals.spec import SignalsSpec


def rounds(spec: SignalsSpec) -> Generator[Sequence[Trial], Results, None]:
    """Yield the trials of the one round; seed by seed, so that a study cut short has whole grids."""
    yield [
        Trial(0, arm, tick, seed) for seed in range(spec.signals.seeds) for arm in spec.arms for tick in spec.ticks()
    ]


def round_name(number: int) -> str:
    """What a display calls it."""
    return "grid"
