"""The losses so far, for ``trimtab status`` and ``trimtab studies``."""

from __future__ import annotations

import math

from trimtab.kinds.loss_at_lr.findings import Compared, LossFindings
from trimtab.report.text import number
from trimtab.study.kind import Standing


def standings(findings: LossFindings) -> list[Standing]:
    """Return the mean final loss of every arm, and its paired difference to the reference, in nats."""
    rows: list[Standing] = []
    for one in findings.compared:
        at = f" at {one.multiple:g}x LR" if one.multiple != 1 else ""
        rows.append(_standing(one.name, f"final loss{at}", one.loss.mean, one.loss.low, one.loss.high))
    for one in findings.compared:
        rows += _difference(findings, one)
    return rows


def _difference(findings: LossFindings, one: Compared) -> list[Standing]:
    if one.difference is None:
        return []
    at = f" at {one.multiple:g}x LR" if one.multiple != 1 else ""
    found = one.difference
    quantity = f"loss minus {findings.spec.reference}{at}"
    return [_standing(one.name, quantity, found.mean, found.low, found.high)]


def _standing(arm: str, quantity: str, value: float, low: float, high: float) -> Standing:
    text = f"{number(value, '.3f')} [{number(low, '.3f')}, {number(high, '.3f')}]"
    finite = [number if math.isfinite(number) else None for number in (value, low, high)]
    return Standing(arm, quantity, text, *finite)
