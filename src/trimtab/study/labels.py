"""Label a run from its facts, by a rule that is fixed before the study starts. Labels are never stored."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum

from trimtab.run.folder import Outcome
from trimtab.study.settings import Criterion


class Label(StrEnum):
    """The result of a run: the first label in this order that applies."""

    NO_OUTCOME = "no_outcome"  # the machine failed; not evidence about the arm
    NON_FINITE = "non_finite"
    EXPLODED = "exploded"
    STUCK = "stuck"  # above the line of collapse, at the arm's best LR or higher
    DEGRADED = "degraded"
    NOT_LEARNED = "not_learned"  # above the line of collapse, at an LR below the arm's best
    UNDERTRAINED = "undertrained"  # learned too slowly, at an LR below the arm's best
    RECOVERED = "recovered"
    STABLE = "stable"


class Edge(StrEnum):
    """The event whose learning rate is asked for: loss of quality, collapse, or divergence in the strict sense."""

    QUALITY = "quality"
    COLLAPSE = "collapse"
    STRICT = "strict"


STRICT_FAILURES: Collection[Label] = (Label.NON_FINITE, Label.EXPLODED)
COLLAPSES: Collection[Label] = (*STRICT_FAILURES, Label.STUCK)
FAILURES: Collection[Label] = (*COLLAPSES, Label.DEGRADED)

# A run below the arm's best LR that has learned too little says nothing about an LR that is too high.
_FAILURES_AT: Mapping[Edge, Collection[Label]] = {
    Edge.QUALITY: FAILURES,
    Edge.COLLAPSE: COLLAPSES,
    Edge.STRICT: STRICT_FAILURES,
}
_NO_EVIDENCE_AT: Mapping[Edge, Collection[Label]] = {
    Edge.QUALITY: (Label.NO_OUTCOME, Label.NOT_LEARNED, Label.UNDERTRAINED),
    Edge.COLLAPSE: (Label.NO_OUTCOME, Label.NOT_LEARNED),
    Edge.STRICT: (Label.NO_OUTCOME,),
}


@dataclass(frozen=True, slots=True)
class Yardstick:
    """The losses and the LR that a run is compared with.

    Attributes:
        best_loss: best loss of the arm for the limit "breaks"; best loss of the reference arm for the limit "usable".
        best_tick: the arm's best LR, in sixteenths of an octave; a failure below it is not one of a high LR.
        reference_loss: best loss of the reference arm ("L*"), which defines the line of collapse.
    """

    best_loss: float
    best_tick: int
    reference_loss: float


def collapse_line(unigram_entropy: float, reference_loss: float, criterion: Criterion) -> float:
    """The final loss above which a run has collapsed, in nats; the same for all arms of a size.

    It lies ``collapse_margin`` above the best loss of the reference, or ``stuck_share`` of the way from the unigram
    entropy to that loss, whichever is lower.
    """
    learned = unigram_entropy - reference_loss
    return min(reference_loss + criterion.collapse_margin, unigram_entropy - criterion.stuck_share * learned)


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
    high = tick >= yardstick.best_tick
    if final > collapse_line(outcome.unigram_entropy, yardstick.reference_loss, criterion):
        return Label.STUCK if high else Label.NOT_LEARNED
    if final > yardstick.best_loss + margin:
        return Label.DEGRADED if high else Label.UNDERTRAINED
    return Label.RECOVERED if outcome.spike > criterion.spike_margin else Label.STABLE


def failed(run_label: Label, edge: Edge = Edge.QUALITY) -> bool | None:
    """Whether a label is a failure at an edge; None if it is no evidence about that edge."""
    return None if run_label in _NO_EVIDENCE_AT[edge] else run_label in _FAILURES_AT[edge]


def reference_never_learned(reference_loss: float, unigram_entropy: float) -> bool:
    """Whether the best loss of the reference arm is not finite or not below the unigram entropy."""
    return not math.isfinite(reference_loss) or reference_loss >= unigram_entropy
