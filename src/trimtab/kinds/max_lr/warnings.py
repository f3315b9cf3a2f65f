"""Warnings about a study of limits, and the step at which the loss of a failing run departs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from trimtab.kinds.max_lr.findings import ArmFindings, CriterionName, LabelledRun
from trimtab.kinds.max_lr.rounds import PhaseOne
from trimtab.kinds.max_lr.spec import MaxLrSpec
from trimtab.run.folder import Outcome
from trimtab.study.labels import Label, failed
from trimtab.study.trial import SIXTEENTH

ISOTONIC_SLACK = 2**0.25  # allows for the noise of the isotonic estimate
LATE_SHARE = 0.2  # the last fifth of the steps


def warnings_of(
    spec: MaxLrSpec, phase: PhaseOne, runs: Sequence[LabelledRun], arms: Mapping[str, ArmFindings]
) -> list[str]:
    """Return the warnings, a sentence each."""
    margin = spec.criterion.margin
    if not phase.learned:
        return [
            f"reference never learned: the best final loss of '{spec.reference}' is {phase.reference_loss:.3f} nats, "
            f"which is not below the unigram entropy of {phase.unigram_entropy:.3f} nats; train longer or lower the "
            "learning rates"
        ]
    lines: list[str] = []
    if math.isfinite(phase.seed_sd) and margin < 4 * phase.seed_sd:
        lines.append(
            f"the margin of {margin} nats is less than 4 times the standard deviation between seeds, which is "
            f"{phase.seed_sd:.3f} nats; labels near the limit depend partly on the seed"
        )
    if phase.unclear:
        lines.append(
            "no clear boundary (in the first sweep, a run succeeded at a higher LR than a failed run): "
            + ", ".join(phase.unclear)
        )
    missing = [run for run in runs if run.label is Label.NO_OUTCOME]
    if len(missing) > 0.05 * len(runs):
        lines.append(f"{len(missing)} of {len(runs)} runs have no outcome because of the machine; they are not counted")
    lines += _late(spec, runs, margin)
    orders = _orders(arms, ("half_d", "d", "double_d"))
    if len(set(orders.values())) > 1:
        lines.append(
            "the order of the arms depends on the margin: "
            + "; ".join(f"{name}: {' < '.join(order)}" for name, order in orders.items())
        )
    return lines + _doubted(arms)


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


def _late(spec: MaxLrSpec, runs: Sequence[LabelledRun], margin: float) -> list[str]:
    failures = [run for run in runs if failed(run.label)]
    starts = [departure(run.outcome, margin) for run in failures if run.outcome is not None]
    late = [start for start in starts if (start or 0) > (1 - LATE_SHARE) * spec.protocol.training.steps]
    if not failures or len(late) <= 0.1 * len(failures):
        return []
    return [
        f"{len(late)} of {len(failures)} failures began in the last fifth of the steps; "
        "a longer training may give lower limits"
    ]


def _doubted(arms: Mapping[str, ArmFindings]) -> list[str]:
    lines: list[str] = []
    for arm, findings in arms.items():
        limit = findings.criteria["d"].breaks.lr50
        iso = findings.isotonic_lr50
        low = limit.low or 0.0
        high = limit.high or math.inf
        if limit.bound is None and iso is not None and not low / ISOTONIC_SLACK <= iso <= high * ISOTONIC_SLACK:
            lines.append(f"{arm}: the model-free estimate of LR50, {iso:.3g}, is far outside the interval of LR50")
    return lines


def _orders(arms: Mapping[str, ArmFindings], criteria: Sequence[CriterionName]) -> dict[str, tuple[str, ...]]:
    """Return, for each criterion, the arms in order of LR50.

    Only arms with an LR50 under every criterion are listed. Arms within 1/16 octave are ordered by name.
    """

    def tick(arm: str, criterion: CriterionName) -> int | None:
        limit = arms[arm].criteria[criterion].breaks.lr50.estimate
        return None if limit is None else round(math.log2(limit) * SIXTEENTH)

    known = [arm for arm in arms if all(tick(arm, criterion) is not None for criterion in criteria)]
    return {c: tuple(sorted(known, key=lambda arm: (tick(arm, c) or 0, arm))) for c in criteria}
