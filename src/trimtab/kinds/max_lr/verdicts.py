"""The conclusions of a study of limits in sentences: each arm against the reference, groups, and the paper's order."""

from __future__ import annotations

from trimtab.kinds.max_lr.agreement import OrderAgreement
from trimtab.kinds.max_lr.confirmation import claimed
from trimtab.kinds.max_lr.findings import MAIN, Confirmed, EdgeName, LimitFindings
from trimtab.kinds.max_lr.table import BOUNDS, doubts, ratio
from trimtab.stats.groups import FAMILYWISE

EVENTS = {"quality": "loses quality", "collapse": "collapses"}


def verdicts(findings: LimitFindings, agreement: OrderAgreement | None) -> list[str]:
    """Return the conclusions at both edges."""
    lines: list[str] = []
    for edge in MAIN:
        lines += _against_reference(findings, edge)
        lines += _groups(findings, edge)
    lines += [_confirmation(confirmed, findings.spec.search.confirm) for confirmed in findings.confirmed]
    if agreement is not None:
        tau = agreement.tau_b
        lines.append(
            f"order of the arms at the edge of collapse against {agreement.paper}: {agreement.verdict} (Kendall's "
            f"tau-b {tau.estimate:.2f} [{tau.low:.2f}, {tau.high:.2f}], interval over {len(agreement.arms)} arms "
            f"and their limits; p {agreement.p_value:.2g})"
            + (f"; not compared: {', '.join(agreement.left_out)}" if agreement.left_out else "")
        )
    return lines


def claimed_above(findings: LimitFindings, edge: EdgeName) -> list[str]:
    """Return the arms whose limit is above that of the reference, the highest limit first."""
    return claimed({name: arm.criteria[MAIN[edge]] for name, arm in findings.arms.items()})


def _against_reference(findings: LimitFindings, edge: EdgeName) -> list[str]:
    reference = findings.spec.reference
    lines: list[str] = []
    for name, arm in findings.arms.items():
        criterion = arm.criteria[MAIN[edge]]
        estimate = criterion.ratio.lr50
        if name == reference or estimate.bound in BOUNDS or criterion.p_holm is None:
            continue
        shift = arm.edges[edge].visible_shift
        told = criterion.p_holm < FAMILYWISE
        direction = "higher" if (estimate.estimate or 0.0) > 1 else "lower"
        verdict = f"{EVENTS[edge]} at a {direction} learning rate" if told else "cannot be told from the reference"
        lines.append(
            f"{edge}: {name} {verdict}: {ratio(estimate)} of {reference}{doubts(findings, name)[1]}, p (Holm) "
            f"{criterion.p_holm:.2g}"
            + (f" (smallest visible shift {shift:.2f} octaves)" if shift is not None and not told else "")
        )
    return lines


def _confirmation(fresh: Confirmed, seeds: int) -> str:
    verdict = {True: "confirmed", False: "not confirmed", None: "not checked"}[fresh.holds]
    below, above = (f"{failures} of {runs} fail" for failures, runs in (fresh.below, fresh.above))
    return (
        f"{fresh.edge}: the limit of {fresh.arm} is {verdict} by {seeds} unseen seeds: {below} at {fresh.lr / 2:.3g}, "
        f"{above} at {fresh.lr * 2:.3g}"
    )


def _groups(findings: LimitFindings, edge: EdgeName) -> list[str]:
    members: dict[str, list[str]] = {}
    for name, arm in findings.arms.items():
        for letter in arm.edges[edge].group:
            members.setdefault(letter, []).append(name)
    if len(members) < 2:
        return []
    groups = "; ".join(f"{letter}: {', '.join(names)}" for letter, names in sorted(members.items()))
    return [f"{edge}: arms of one group cannot be told apart (familywise {FAMILYWISE:.0%}): {groups}"]
