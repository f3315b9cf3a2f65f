"""The limits so far, for ``trimtab status`` and ``trimtab studies``."""

from __future__ import annotations

from trimtab.kinds.max_lr.findings import MAIN, Estimate, LimitFindings
from trimtab.kinds.max_lr.table import limit
from trimtab.study.kind import Standing

QUANTITIES = {"quality": "loses quality at (LR50)", "collapse": "collapses at (LR50)"}


def standings(findings: LimitFindings) -> list[Standing]:
    """Return both edges of every arm, as learning rates."""
    return [
        standing(name, QUANTITIES[edge], arm.criteria[criterion].breaks.lr50)
        for edge, criterion in MAIN.items()
        for name, arm in findings.arms.items()
    ]


def standing(arm: str, quantity: str, estimate: Estimate) -> Standing:
    """Return an estimate as an answer; the side on which it is only a bound is open."""
    low = estimate.estimate if estimate.bound == "above" else estimate.low
    high = estimate.estimate if estimate.bound == "below" else estimate.high
    return Standing(arm, quantity, limit(estimate), estimate.estimate, low, high)
