"""The result table of a study of limits as text, and its conclusions in sentences."""

from __future__ import annotations

from trimtab.kinds.max_lr.agreement import OrderAgreement
from trimtab.kinds.max_lr.findings import Estimate, LimitFindings
from trimtab.kinds.max_lr.reported import REPORTED
from trimtab.report.text import number
from trimtab.section import Table

COLUMNS = (
    "arm",
    "safe up to (LR10)",
    "breaks at (LR50)",
    "usable up to",
    "ratio to {reference}",
    "p (Holm)",
    "best loss",
    "LR sensitivity",
    "runs",
)
BOUNDS = {
    "no_clear_boundary": "no clear boundary",
    "no_data": "no data",
    "undetermined": "undetermined",
    "other_optimizer": "other optimizer",
}
CAVEAT = "limits of small models need not carry over to large ones"


def result_table(findings: LimitFindings, agreement: OrderAgreement | None) -> Table:
    """Return one row per arm, with a column for the limits that the paper reports if enough arms have them."""
    reference = findings.spec.reference
    columns = [column.format(reference=reference) for column in COLUMNS]
    rows: list[list[str]] = []
    for name, arm in findings.arms.items():
        main = arm.criteria["d"]
        rows.append(
            [
                name,
                limit(main.breaks.lr10),
                limit(main.breaks.lr50),
                limit(main.usable.lr50),
                "1" if name == reference else ratio(main.ratio.lr50),
                "" if main.p_holm is None else f"{main.p_holm:.2g}",
                number(arm.best_loss, ".3f"),
                number(arm.lr_sensitivity, ".3f"),
                str(sum(arm.counts.values())),
            ]
        )
        if agreement is not None:
            rows[-1].append(reported(arm.method) if findings.spec.comparable(name) else "")
    return Table(columns + (["reported: trains, breaks"] if agreement is not None else []), rows)


def limit(estimate: Estimate) -> str:
    """Return '0.0947 [0.081, 0.11]', '> 2' for a bound, or the reason why there is no estimate."""
    if estimate.bound in BOUNDS:
        return BOUNDS[estimate.bound]
    text = f"{sign(estimate.bound)}{number(estimate.estimate, '#.3g')}"
    if estimate.bound:
        return text
    return f"{text} [{number(estimate.low, '#.2g')}, {number(estimate.high, '#.2g')}]"


def ratio(estimate: Estimate) -> str:
    """Return '3.1x [2.2, 4.6]', '> 3x [...]' for a bound, or the reason why there is no estimate."""
    if estimate.bound in BOUNDS:
        return BOUNDS[estimate.bound]
    low = number(estimate.low, "#.2g")
    high = number(estimate.high, "#.2g")
    return f"{sign(estimate.bound)}{number(estimate.estimate, '#.2g')}x [{low}, {high}]"


def reported(method: str) -> str:
    """Return '0.04, 0.06 (3 accounts)': the highest LR that trained and the lowest LR that diverged."""
    if method not in REPORTED:
        return ""
    row = REPORTED[method]
    breaks = "disputed" if row.diverges_at is None else f"{row.diverges_at:g}"
    return f"{row.trains_at:g}, {breaks} ({row.support})"


def sign(bound: str | None) -> str:
    """Return the sign in front of a bound; empty for an estimate."""
    return {"above": "> ", "below": "< "}.get(bound or "", "")


def verdicts(findings: LimitFindings, agreement: OrderAgreement | None) -> list[str]:
    """Return a sentence on each arm against the reference, and on the order of the arms against the paper's order."""
    reference = findings.spec.reference
    lines: list[str] = []
    for name, arm in findings.arms.items():
        estimate = arm.criteria["d"].ratio.lr50
        if name == reference or estimate.bound in BOUNDS:
            continue
        shift = arm.visible_shift
        excludes = (estimate.low or 0) > 1 or (estimate.high is not None and estimate.high < 1)
        verdict = "the interval excludes 1" if excludes else "the interval does not exclude 1"
        lines.append(
            f"{name}/{reference}: {ratio(estimate)}: {verdict}"
            + (f" (smallest visible shift {shift:.2f} octaves)" if shift is not None else "")
        )
    if agreement is not None:
        tau = agreement.tau_b
        lines.append(
            f"order of the arms against {agreement.paper}: Kendall's tau-b {tau.estimate:.2f} "
            f"[{tau.low:.2f}, {tau.high:.2f}] over {len(agreement.arms)} arms"
            + (f"; not compared: {', '.join(agreement.left_out)}" if agreement.left_out else "")
        )
    return lines
