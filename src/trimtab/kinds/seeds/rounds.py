"""The round of a study of seeds: each initial model is trained with each order of the data, and some runs twice."""

from __future__ import annotations

from trimtab.kinds.seeds.spec import SeedsSpec
from trimtab.study.kind import Rounds
from trimtab.study.trial import Trial


def rounds(spec: SeedsSpec) -> Rounds:
    """Yield the trials of the only round: for each pair of seeds, every arm; then repeats, spread over the design."""
    tick = spec.seeds.tick
    cells = [(init, data) for init in range(spec.seeds.init) for data in range(spec.seeds.data)]
    again = _spread(cells, spec.seeds.data)[: spec.seeds.repeats]
    yield [
        *(Trial(0, arm, tick, init, data) for init, data in cells for arm in spec.arms),
        *(Trial(0, arm, tick, init, data, repeat=1) for init, data in again for arm in spec.arms),
    ]


def round_name(number: int) -> str:
    """Return the name of the round."""
    return "seeds"


def _spread(cells: list[tuple[int, int]], columns: int) -> list[tuple[int, int]]:
    """All cells, diagonal by diagonal, so that the first ones cover all seeds evenly."""
    return sorted(cells, key=lambda cell: ((cell[1] - cell[0]) % columns, cell))
