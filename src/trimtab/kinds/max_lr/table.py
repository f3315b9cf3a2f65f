"""The result table of a study of limits as text."""

from __future__ import annotations

from trimtab.kinds.max_lr.agreement import OrderAgreement
from trimtab.kinds.max_lr.findings import MAIN, ArmFindings, EdgeName, Estimate, LimitFindings
from trimtab.kinds.max_lr.reported import REPORTED
from trimtab.report.text import number
from trimtab.section import Table
from trimtab.stats.sensitivity import Sensitivity

COLUMNS = (
    "arm",
    "loses quality at (LR50)",
    "ratio to {reference}",
    "group",
    "collapses at (LR50)",
    "ratio to {reference} (collapse)",
    "group (collapse)",
    "usable up to",
    "best loss",
    "LR sensitivity",
    "runs",
)
BOUNDS = {
    "no_single_edge": "no single edge",
    "never_learned": "never learned",
    "no_data": "no data",
    "undetermined": "undetermined",
    "other_optimizer": "other optimizer",
}
NOT_BRACKETED = "best not bracketed"
CAVEAT = "limits of small models need not carry over to large ones"


def result_table(findings: LimitFindings, agreement: OrderAgreement | None) -> Table:
    """Return one row per arm, with a column for the limits that the paper reports if enough arms have them."""
    reference = findings.spec.reference
    columns = [column.format(reference=reference) for column in COLUMNS]
    rows: list[list[str]] = []
    for name, arm in findings.arms.items():
        quality, collapse = arm.criteria["d"], arm.criteria["collapse"]
        own, to_reference = doubts(findings, name)
        rows.append(
            [
                name,
                "one edge, see collapse" if arm.one_edge else limit(quality.breaks.lr50) + own,
                "1" if name == reference else ratio(quality.ratio.lr50) + to_reference,
                arm.edges["quality"].group,
                limit(collapse.breaks.lr50) + to_reference,
                "1" if name == reference else ratio(collapse.ratio.lr50) + to_reference,
                arm.edges["collapse"].group,
                limit(quality.usable.lr50) + to_reference,
                number(arm.best_loss, ".3f") + own,
                sensitivity(arm.lr_sensitivity) + own,
                str(sum(arm.counts.values())),
            ]
        )
        if agreement is not None:
            rows[-1].append(reported(arm.method) if findings.spec.comparable(name) else "")
    return Table(columns + (["reported: trains, breaks"] if agreement is not None else []), rows)


def doubts(findings: LimitFindings, name: str) -> tuple[str, str]:
    """Return what is added to numbers that depend on the best of an arm, and to those that need the reference's too."""
    own = findings.arms[name].bracketed
    both = own and findings.arms[findings.spec.reference].bracketed
    return ("" if own else f" ({NOT_BRACKETED})"), ("" if both else f" ({NOT_BRACKETED})")


def edge_table(findings: LimitFindings) -> Table:
    """Return one row per arm and edge: LR10, shape, spread, horizon and power."""
    rows: list[list[str]] = []
    for name, arm in findings.arms.items():
        for edge in MAIN:
            rows.append([name, edge, *_edge_cells(findings, name, arm, edge)])
    columns = [
        "arm",
        "edge",
        "safe up to (LR10)",
        "shape (nats per octave)",
        "spread at the edge (nats)",
        "width (octaves)",
    ]
    columns += ["smallest visible shift (octaves)", "failures", "late failures"]
    return Table(columns, rows)


def _edge_cells(findings: LimitFindings, name: str, arm: ArmFindings, edge: EdgeName) -> list[str]:
    detail = arm.edges[edge]
    criterion = arm.criteria[MAIN[edge]]
    width = detail.width
    own, to_reference = doubts(findings, name)
    return [
        limit(criterion.breaks.lr10) + (own if edge == "quality" else to_reference),
        "-" if detail.shape is None else f"{detail.shape} ({number(detail.slope, '+.2f')})",
        number(detail.spread, ".3f"),
        "-" if width is None else f"{width.estimate:.2f} [{width.low:.2f}, {width.high:.2f}]",
        number(detail.visible_shift, ".2f"),
        str(detail.failures),
        f"{detail.late:.0%}",
    ]


def pair_table(findings: LimitFindings, edge: EdgeName) -> Table:
    """Return one row per pair of arms: their ratio, whether the first breaks at a higher rate, and Holm's p-value."""
    rows = [
        [
            *(pair.arm, pair.other, ratio(pair.ratio), f"{pair.visible_shift:.2f}"),
            *(f"{pair.probability:.3f}", f"{pair.p_holm:.2g}"),
        ]
        for pair in findings.pairs[edge]
    ]
    columns = ["A", "B", "A / B", "smallest visible shift (octaves)", "P(A > B), not corrected", "p (Holm, all pairs)"]
    return Table(columns, rows)


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


def sensitivity(value: Sensitivity) -> str:
    """Return '0.48 [0.42, 0.53]', with the tested part of the window if it is not whole."""
    text = f"{number(value.estimate, '.2f')} [{number(value.low, '.2f')}, {number(value.high, '.2f')}]"
    return text if value.octaves >= value.window - 1 else f"{text} on {value.octaves:.0f} of {value.window:.0f} octaves"


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
