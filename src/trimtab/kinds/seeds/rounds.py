"""Which runs a study of seeds makes: each initial model with each order of the data."""

from __future__ import annotations

from trimtab.kinds.seeds.spec import SeedsSpec
from trimtab.study.kind import Rounds
from trimtab.study.trial import Trial


def rounds(spec: SeedsSpec) -> Rounds:
    """Yield the trials of the one round, one pair of seeds after the other, each with every arm."""
    yield [
        Trial(0, arm, spec.seeds.tick, init, data)
        for init in range(spec.seeds.init)
        for data in range(spec.seeds.data)
        for arm in spec.arms
    ]


def round_name(number: int) -> str:
    """What a display calls it."""
    return "seeds"
