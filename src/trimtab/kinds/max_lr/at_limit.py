"""Unseen seeds at the limit of every arm and an octave above it, for the comparison of failing with sound runs.

These runs are no evidence for the limits, which were estimated without them.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

from trimtab.kinds.max_lr.criteria import RULES, limits_of
from trimtab.kinds.max_lr.findings import MAIN
from trimtab.kinds.max_lr.phase import edge_model, phase_one
from trimtab.kinds.max_lr.spec import MaxLrSpec
from trimtab.study.labels import Edge, failed, label
from trimtab.study.trial import SIXTEENTH, Results, Tick, Trial

AT_LIMIT = 200_000  # the number of the round, above that of every round that is evidence for the limits
MOVED = AT_LIMIT + 1  # the round at the moved rate
FIRST_SEED = 700_000  # unseen: above the seeds of the search and of a confirmation
MOVE = SIXTEENTH // 4
BALANCED = (0.25, 0.75)  # shares of failing runs between which the rate stays


def runs_at_limit(spec: MaxLrSpec, results: Results) -> Generator[Sequence[Trial], Results, None]:
    """Yield the runs at the limit and above it, and, where too few or too many of them fail, runs at a moved rate.

    Args:
        spec: the study.
        results: of the search.
    """
    edge = spec.movers.edge
    phase = phase_one(spec, results)
    if not spec.movers.seeds or not phase.learned:
        return
    limits = limits_of(spec, phase, results, edge_model(spec, phase), RULES[MAIN[edge]]).findings
    known = {arm: limits[arm].breaks.lr50.estimate for arm in spec.arms if limits[arm].breaks.lr50.bound is None}
    ticks = {arm: Tick.nearest(lr) for arm, lr in known.items() if lr is not None}
    if not ticks:
        return
    seeds = range(FIRST_SEED, FIRST_SEED + spec.movers.seeds)
    above = range(FIRST_SEED, FIRST_SEED + spec.movers.above)
    at_limit = [Trial(AT_LIMIT, arm, tick, seed) for arm, tick in ticks.items() for seed in seeds]
    made = yield [
        *at_limit,
        *(Trial(AT_LIMIT, arm, Tick(tick + SIXTEENTH), seed) for arm, tick in ticks.items() for seed in above),
    ]
    moved: list[Trial] = []
    for arm, tick in ticks.items():
        failures = [
            failed(label(made[trial], tick, phase.yardstick(arm), spec.criterion, spec.criterion.margin), Edge(edge))
            for trial in at_limit
            if trial.arm == arm
        ]
        counted = [failure for failure in failures if failure is not None]
        share = sum(counted) / len(counted) if counted else 0.5
        if not BALANCED[0] <= share <= BALANCED[1]:
            further = Tick(tick + MOVE if share < BALANCED[0] else tick - MOVE)
            moved += [Trial(MOVED, arm, further, seed + spec.movers.seeds) for seed in seeds]
    if moved:
        yield moved
