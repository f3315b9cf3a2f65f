"""One edge of each arm in detail: its width, its shape, the spread of the losses there, and when its failures began."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from trimtab.kinds.max_lr.criteria import Limits, order_by_limit
from trimtab.kinds.max_lr.findings import EdgeFindings, Estimate, LabelledRun, Pair, Posterior
from trimtab.kinds.max_lr.phase import PhaseOne
from trimtab.kinds.max_lr.ratios import INTERVAL
from trimtab.kinds.max_lr.spec import MaxLrSpec
from trimtab.run.folder import Outcome
from trimtab.stats.comparison import smallest_visible_shift
from trimtab.stats.groups import FAMILYWISE, letters
from trimtab.stats.isotonic import centred_isotonic_level
from trimtab.stats.local_line import LocalLine, local_line
from trimtab.stats.posterior import EdgePosterior
from trimtab.study.labels import COLLAPSES, Edge, failed

NEAR = 1.0  # octaves from LR50
CLIFF = 2.0  # margins per octave
LATE_SHARE = 0.2  # the last fifth of the steps


def edges_of(
    spec: MaxLrSpec, phase: PhaseOne, runs: Sequence[LabelledRun], limits: Limits, pairs: Sequence[Pair]
) -> dict[str, EdgeFindings]:
    """Return the edge of every arm."""
    distinct = {frozenset((pair.arm, pair.other)) for pair in pairs if pair.p_holm < FAMILYWISE}
    compared = {name for pair in pairs for name in (pair.arm, pair.other)}
    group = letters([arm for arm in order_by_limit(limits) if arm in compared], distinct)
    return {
        arm: _edge(spec, phase, [run for run in runs if run.trial.arm == arm], limits, arm, group.get(arm, ""))
        for arm in spec.arms
    }


def began_to_fail(outcome: Outcome, ceiling: float) -> int | None:
    """Return the step from which the held-out loss stays above a ceiling.

    Returns:
        The first such step; the last step of a stopped run that has no such step; otherwise None.
    """
    start: int | None = None
    for step, loss in outcome.held_out:
        away = loss > ceiling or not math.isfinite(loss)
        start = (step if start is None else start) if away else None
    return outcome.steps if start is None and outcome.stopped is not None else start


def departure(outcome: Outcome, margin: float) -> int | None:
    """Return the step from which the held-out loss stays above its running minimum plus the margin.

    Returns:
        The first such step; the last step of a stopped run that has no such step; otherwise None.
    """
    lowest = math.inf
    start: int | None = None
    for step, loss in outcome.held_out:
        away = loss > lowest + margin or not math.isfinite(loss)
        start = (step if start is None else start) if away else None
        lowest = min(lowest, loss) if math.isfinite(loss) else lowest
    return outcome.steps if start is None and outcome.stopped is not None else start


def _edge(
    spec: MaxLrSpec, phase: PhaseOne, runs: Sequence[LabelledRun], limits: Limits, arm: str, group: str
) -> EdgeFindings:
    posterior, trials = limits.breaks.get(arm), limits.trials[arm]
    line, spread = _near(runs, phase.unigram_entropy, posterior)
    failing = [run for run in runs if failed(run.label, limits.rule.edge)]
    return EdgeFindings(
        visible_shift=_visible_shift(spec, limits, arm),
        isotonic_lr50=2.0 ** centred_isotonic_level(trials) if posterior is not None else None,
        width=_width(posterior) if posterior is not None else None,
        pooled=posterior is not None and posterior.pooled,
        group=group,
        slope=None if line is None else line.slope,
        spread=None if spread is None else spread.spread,
        shape=None if line is None else "cliff" if line.slope > CLIFF * spec.criterion.margin else "slope",
        failures=len(failing),
        late=_late_share(spec, phase, failing, limits.rule.edge),
        posterior=Posterior()
        if posterior is None
        else Posterior(tuple(posterior.x50.tolist()), tuple(posterior.density().tolist())),
    )


def _near(
    runs: Sequence[LabelledRun], entropy: float, posterior: EdgePosterior | None
) -> tuple[LocalLine | None, LocalLine | None]:
    """Return the line of all runs near LR50, with losses up to the entropy, and that of the runs that learned."""
    if posterior is None:
        return None, None
    at = float(posterior.quantiles((0.5,))[0])
    done = [(run, run.outcome) for run in runs if run.outcome is not None]
    octaves = [run.trial.tick.octave for run, _ in done]
    held = [min(o.final_loss, entropy) if math.isfinite(o.final_loss) else entropy for _, o in done]
    learned = [math.nan if run.label in COLLAPSES else loss for (run, _), loss in zip(done, held, strict=True)]
    return local_line(octaves, held, at, NEAR), local_line(octaves, learned, at, NEAR)


def _visible_shift(spec: MaxLrSpec, limits: Limits, arm: str) -> float | None:
    posterior, reference = limits.breaks.get(arm), limits.breaks.get(spec.reference)
    if posterior is None or reference is None or arm == spec.reference or not spec.comparable(arm):
        return None
    return smallest_visible_shift(posterior, reference)


def _width(posterior: EdgePosterior) -> Estimate:
    low, median, high = (float(x) for x in posterior.width_quantiles(INTERVAL))
    return Estimate(median, low, high)


def _late_share(spec: MaxLrSpec, phase: PhaseOne, failing: Sequence[LabelledRun], edge: Edge) -> float:
    """Return the share of the failures that began in the last fifth of the steps; 0 without failures."""
    outcomes = [run.outcome for run in failing if run.outcome is not None]
    if not outcomes:
        return 0.0
    if edge is Edge.COLLAPSE:
        starts = [began_to_fail(outcome, phase.line(spec)) for outcome in outcomes]
    else:
        starts = [departure(outcome, spec.criterion.margin) for outcome in outcomes]
    last = (1 - LATE_SHARE) * spec.protocol.training.steps
    return sum((start or 0) > last for start in starts) / len(starts)


def widest_spread(edges: Mapping[str, EdgeFindings]) -> tuple[str, float] | None:
    """Return the arm with the widest spread near the edge, and the spread in nats; None if none was measured."""
    measured = {arm: edge.spread for arm, edge in edges.items() if edge.spread is not None}
    if not measured:
        return None
    arm = max(measured, key=lambda name: measured[name])
    return arm, measured[arm]
