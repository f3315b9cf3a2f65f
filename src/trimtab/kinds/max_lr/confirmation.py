"""Confirm the limits of the winner and the reference with unseen seeds, an octave below and an octave above each.

The runs of a confirmation are no evidence for the limits; they check limits that were estimated without them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from trimtab.kinds.max_lr.criteria import RULES, limits_of
from trimtab.kinds.max_lr.findings import MAIN, Confirmed, CriterionFindings, EdgeName, LabelledRun
from trimtab.kinds.max_lr.phase import edge_model, phase_one
from trimtab.kinds.max_lr.spec import MaxLrSpec
from trimtab.stats.groups import FAMILYWISE
from trimtab.study.labels import Edge, failed
from trimtab.study.trial import SIXTEENTH, Results, Tick, Trial

CONFIRMATION = 100_000  # the number of its round, above that of every round of probes
FIRST_SEED = 500_000  # unseen: above the seeds of the sweep, of replicates and of probes


def claimed(criteria: Mapping[str, CriterionFindings]) -> list[str]:
    """Return the arms whose limit is above that of the reference, p (Holm) below 0.05, the highest limit first."""
    arms = [
        arm
        for arm, criterion in criteria.items()
        if criterion.p_holm is not None and criterion.p_holm < FAMILYWISE and (criterion.ratio.lr50.estimate or 0.0) > 1
    ]
    return sorted(arms, key=lambda arm: (-(criteria[arm].breaks.lr50.estimate or 0.0), arm))


def confirmation_trials(spec: MaxLrSpec, results: Results) -> list[Trial]:
    """Return the fresh runs for the winner of each edge and for the reference; none without a winner."""
    phase = phase_one(spec, results)
    if not spec.search.confirm or not phase.learned:
        return []
    model = edge_model(spec, phase)
    trials: list[Trial] = []
    for main in MAIN.values():
        criteria = limits_of(spec, phase, results, model, RULES[main]).findings
        winners = claimed(criteria)
        for arm in (*winners[:1], spec.reference) if winners else ():
            for tick in around(criteria[arm]):
                trials += [Trial(CONFIRMATION, arm, tick, FIRST_SEED + k) for k in range(spec.search.confirm)]
    return list(dict.fromkeys(trials))


def around(criterion: CriterionFindings) -> list[Tick]:
    """Return the rates an octave below and an octave above a limit; none without an estimate."""
    limit = criterion.breaks.lr50
    if limit.bound is not None or limit.estimate is None:
        return []
    middle = Tick.nearest(limit.estimate)
    return [Tick(middle - SIXTEENTH), Tick(middle + SIXTEENTH)]


def confirmed(
    criteria: Mapping[EdgeName, Mapping[str, CriterionFindings]], runs: Sequence[LabelledRun], reference: str
) -> list[Confirmed]:
    """Return what the fresh runs say; empty without a confirmation."""
    fresh = [run for run in runs if run.trial.round == CONFIRMATION]
    found: list[Confirmed] = []
    for edge, by_arm in criteria.items() if fresh else ():
        winners = claimed(by_arm)
        for arm in (*winners[:1], reference) if winners else ():
            ticks = around(by_arm[arm])
            if not ticks:
                continue
            below, above = (_failures(fresh, arm, tick, Edge(edge)) for tick in ticks)
            holds = 2 * below[0] < below[1] and 2 * above[0] > above[1] if below[1] and above[1] else None
            limit = math.sqrt(ticks[0].learning_rate * ticks[1].learning_rate)
            found.append(Confirmed(arm, edge, limit, below, above, holds))
    return found


def _failures(runs: Sequence[LabelledRun], arm: str, tick: Tick, edge: Edge) -> tuple[int, int]:
    known = [failed(run.label, edge) for run in runs if run.trial.arm == arm and run.trial.tick == tick]
    counted = [failure for failure in known if failure is not None]
    return sum(counted), len(counted)
