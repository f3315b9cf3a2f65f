"""Warnings about a study of limits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from trimtab.kinds.max_lr.edges import LATE_SHARE, widest_spread
from trimtab.kinds.max_lr.findings import MAIN, ArmFindings, LabelledRun
from trimtab.kinds.max_lr.phase import PhaseOne
from trimtab.kinds.max_lr.spec import MaxLrSpec
from trimtab.study.labels import Label
from trimtab.study.trial import Tick

ISOTONIC_SLACK = 2**0.25  # allows for the noise of the isotonic estimate
MOST_LATE = 0.1


def warnings_of(
    spec: MaxLrSpec, phase: PhaseOne, runs: Sequence[LabelledRun], arms: Mapping[str, ArmFindings]
) -> list[str]:
    """Return the warnings, a sentence each."""
    if not phase.learned:
        return [
            f"reference never learned: the best final loss of '{spec.reference}' is {phase.reference_loss:.3f} nats, "
            f"which is not below the unigram entropy of {phase.unigram_entropy:.3f} nats; train longer or lower the "
            "learning rates"
        ]
    lines = _brackets(spec, phase)
    lines += _spread(spec, arms)
    for edge, unclear in phase.unclear.items():
        if unclear:
            lines.append(
                f"no single edge of {edge.value} (in the sweep, a run succeeded at a higher LR than a failed run): "
                + ", ".join(unclear)
            )
    if phase.never_learned:
        lines.append(
            "no edge of collapse, because the best loss is less than three margins below the unigram entropy: "
            + ", ".join(phase.never_learned)
        )
    missing = [run for run in runs if run.label is Label.NO_OUTCOME]
    if len(missing) > 0.05 * len(runs):
        lines.append(f"{len(missing)} of {len(runs)} runs have no outcome because of the machine; they are not counted")
    return lines + _late(arms) + _doubted(arms)


def _brackets(spec: MaxLrSpec, phase: PhaseOne) -> list[str]:
    lines: list[str] = []
    for arm in spec.arms:
        if phase.bracketed(arm):
            continue
        best, swept = phase.best[arm].tick, phase.swept[arm]
        end = "highest" if best == swept[-1] else "lowest"
        lines.append(
            f"best not bracketed: the best rate of '{arm}', {_rate(best)}, is the {end} of its sweep; every number "
            "that is relative to its best loss depends on where the sweep ended"
            + ("; this includes the line of collapse of all arms" if arm == spec.reference else "")
        )
    return lines


def _spread(spec: MaxLrSpec, arms: Mapping[str, ArmFindings]) -> list[str]:
    margin = spec.criterion.margin
    widest = widest_spread({name: arm.edges["quality"] for name, arm in arms.items()})
    if widest is None or margin >= 4 * widest[1]:
        return []
    return [
        f"the margin of {margin} nats is less than 4 times the spread of the final loss within one octave of the edge "
        f"of quality, which is {widest[1]:.3f} nats for '{widest[0]}'; labels near that edge depend partly on the seed"
    ]


def _late(arms: Mapping[str, ArmFindings]) -> list[str]:
    lines: list[str] = []
    for edge in MAIN:
        failures = sum(arm.edges[edge].failures for arm in arms.values())
        late = round(sum(arm.edges[edge].failures * arm.edges[edge].late for arm in arms.values()))
        if late > MOST_LATE * failures:
            lines.append(
                f"edge of {edge}: {late} of {failures} failures began in the last {LATE_SHARE:.0%} of the steps; a "
                "longer training may give lower limits"
            )
    return lines


def _doubted(arms: Mapping[str, ArmFindings]) -> list[str]:
    lines: list[str] = []
    for arm, findings in arms.items():
        for edge, main in MAIN.items():
            limit = findings.criteria[main].breaks.lr50
            iso = findings.edges[edge].isotonic_lr50
            low = limit.low or 0.0
            high = limit.high or math.inf
            if limit.bound is None and iso is not None and not low / ISOTONIC_SLACK <= iso <= high * ISOTONIC_SLACK:
                lines.append(
                    f"{arm}, edge of {edge}: the model-free estimate of LR50, {iso:.3g}, is far outside the interval "
                    "of LR50"
                )
    return lines


def _rate(tick: Tick) -> str:
    return f"{tick.learning_rate:.3g}"
