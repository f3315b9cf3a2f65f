"""The round of a study of seeds: each initial model is trained with each order of the data."""

from __future__ import annotations

from trimtab.kinds.seeds.spec import SeedsSpec
from trimtab.study.kind import Rounds
from trimtab.study.trial import Trial


def rounds(spec: SeedsSpec) -> Rounds:
    """Yield the trials of the only round: for each pair of seeds, every arm."""
    yield [
        Trial(0, arm, spec.seeds.tick, init, data)
        for init in range(spec.seeds.init)
        for data in range(spec.seeds.data)
        for arm in spec.arms
    ]


def round_name(number: int) -> str:
    """Return the name of the round."""
    return "seeds"
