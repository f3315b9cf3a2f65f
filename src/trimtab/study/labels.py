"""Label a run from its facts, by a rule that is fixed before the study starts. Labels are never stored."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from trimtab.run.folder import Outcome
from trimtab.study.settings import Criterion


class Label(StrEnum):
    """The result of a run: the first label in this order that applies."""

    NO_OUTCOME = "no_outcome"  # the machine failed; not evidence about the arm
    NON_FINITE = "non_finite"
    EXPLODED = "exploded"
    STUCK = "stuck"
    DEGRADED = "degraded"
    UNDERTRAINED = "undertrained"  # learned too slowly, at an LR below the arm's best: neither failure nor success
    RECOVERED = "recovered"
    STABLE = "stable"


FAILURES: Collection[Label] = (Label.NON_FINITE, Label.EXPLODED, Label.STUCK, Label.DEGRADED)
STRICT_FAILURES: Collection[Label] = (Label.NON_FINITE, Label.EXPLODED)


@dataclass(frozen=True, slots=True)
class Yardstick:
    """The losses and the LR that a run is compared with.

    Attributes:
        best_loss: best loss of the arm for the limit "breaks"; best loss of the reference arm for the limit "usable".
        best_tick: the arm's best LR, in sixteenths of an octave; it separates degraded from undertrained.
        reference_loss: best loss of the reference arm ("L*"), which defines stuck.
    """

    best_loss: float
    best_tick: int
    reference_loss: float


def label(outcome: Outcome | None, tick: int, yardstick: Yardstick, criterion: Criterion, margin: float) -> Label:
    """The label of one run at LR 2^(tick/16), for a margin in nats."""
    if outcome is None:
        return Label.NO_OUTCOME
    final = outcome.final_loss
    if outcome.stopped == "non_finite" or math.isnan(final):
        return Label.NON_FINITE
    if outcome.stopped == "exploded":
        return Label.EXPLODED
    if final > outcome.log_vocab + criterion.explosion_margin or outcome.norm_ratio > criterion.explosion_norm_ratio:
        return Label.EXPLODED
    learned = outcome.unigram_entropy - yardstick.reference_loss
    if final > outcome.unigram_entropy - criterion.stuck_share * learned:
        return Label.STUCK
    if final > yardstick.best_loss + margin:
        return Label.DEGRADED if tick >= yardstick.best_tick else Label.UNDERTRAINED
    return Label.RECOVERED if outcome.spike > criterion.spike_margin else Label.STABLE


def failed(run_label: Label, *, strict: bool = False) -> bool | None:
    """Whether a label is a failure; None if it is neither failure nor success."""
    if run_label in (Label.NO_OUTCOME, Label.UNDERTRAINED):
        return None
    return run_label in (STRICT_FAILURES if strict else FAILURES)


def reference_never_learned(reference_loss: float, unigram_entropy: float) -> bool:
    """Whether the best loss of the reference arm is not finite or not below the unigram entropy."""
    return not math.isfinite(reference_loss) or reference_loss >= unigram_entropy
