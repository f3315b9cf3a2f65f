"""The result table as text cells, the same for the terminal and the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from trimtab.config import printable
from trimtab.report.reported import REPORTED

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
BOUNDS = {"no_clear_boundary": "no clear boundary", "no_data": "no data", "undetermined": "undetermined"}


@dataclass(frozen=True, slots=True)
class ResultTable:
    """Column titles and rows of text."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def result_table(results: Mapping[str, Any]) -> ResultTable:
    """One row an arm; with what the paper reports, where arms have a reported limit."""
    with_reported = results["reported"] is not None
    reference = results["study"]["reference"]
    columns = [column.format(reference=reference) for column in COLUMNS] + ["reported: trains, breaks"] * with_reported
    rows: list[list[str]] = []
    for name, arm in results["arms"].items():
        main = arm["criteria"]["d"]
        rows.append(
            [
                name,
                limit(main["breaks"]["lr10"]),
                limit(main["breaks"]["lr50"]),
                limit(main["usable"]["lr50"]),
                "1" if name == reference else ratio(main["ratio"]["lr50"]),
                "" if main["p_holm"] is None else f"{main['p_holm']:.2g}",
                number(arm["best_loss"], ".3f"),
                number(arm["lr_sensitivity"], ".3f"),
                str(sum(arm["counts"].values())),
            ]
            + [reported(arm["method"])] * with_reported
        )
    return ResultTable(columns, rows)


def limit(estimate: Mapping[str, Any]) -> str:
    """'0.0947 [0.081, 0.11]', '> 2' outside the tested range, or why there is none."""
    bound = estimate["bound"]
    if bound in BOUNDS:
        return BOUNDS[bound]
    text = f"{sign(bound)}{number(estimate['estimate'], '#.3g')}"
    if bound:
        return text
    return f"{text} [{number(estimate['low'], '#.2g')}, {number(estimate['high'], '#.2g')}]"


def ratio(estimate: Mapping[str, Any]) -> str:
    """'3.1x [2.2, 4.6]', '> 3x' where an edge lies outside the tested range."""
    bound = estimate["bound"]
    if bound in BOUNDS:
        return BOUNDS[bound]
    low, high = number(estimate["low"], "#.2g"), number(estimate["high"], "#.2g")
    return f"{sign(bound)}{number(estimate['estimate'], '#.2g')}x [{low}, {high}]"


def reported(method: str) -> str:
    """'0.04, 0.06 (3 accounts)': the highest LR that trained, and the next, which did not."""
    if method not in REPORTED:
        return ""
    row = REPORTED[method]
    breaks = "disputed" if row.diverges_at is None else f"{row.diverges_at:g}"
    return f"{row.trains_at:g}, {breaks} ({row.support})"


def sign(bound: str | None) -> str:
    """The sign in front of a number that is only a bound."""
    return {"above": "> ", "below": "< "}.get(bound or "", "")


def number(value: float | None, style: str) -> str:
    """A number, or a dash where there is none."""
    return "-" if value is None else format(value, style).rstrip(".")


def conclusions(results: Mapping[str, Any]) -> list[str]:
    """What the table says, in sentences: every arm against the reference, then what to be wary of."""
    reference = results["study"]["reference"]
    lines: list[str] = []
    for name, arm in results["arms"].items():
        estimate = arm["criteria"]["d"]["ratio"]["lr50"]
        if name == reference or estimate["bound"] in BOUNDS:
            continue
        shift = arm["visible_shift"]
        excludes = (estimate["low"] or 0) > 1 or (estimate["high"] is not None and estimate["high"] < 1)
        verdict = "the interval excludes 1" if excludes else "the interval does not exclude 1"
        lines.append(
            f"{name}/{reference}: {ratio(estimate)}: {verdict}"
            + (f" (smallest visible shift {shift:.2f} octaves)" if shift is not None else "")
        )
    agreement = results["reported"]
    if agreement is not None:
        tau = agreement["tau_b"]
        lines.append(
            f"order against {agreement['paper']}: Kendall tau-b {tau['estimate']:.2f} "
            f"[{tau['low']:.2f}, {tau['high']:.2f}] over {len(agreement['arms'])} arms"
            + (f"; left out: {', '.join(agreement['left_out'])}" if agreement["left_out"] else "")
        )
    lines += [f"warning: {warning}" for warning in results["study"]["warnings"]]
    lines.append("limits of small models need not carry over to large ones")
    return lines


def print_table(results: Mapping[str, Any], console: Console) -> None:
    """The table and its conclusions on a terminal; names are shown as plain text."""
    content = result_table(results)
    table = Table(title=Text(printable(results["study"]["name"])))
    for index, column in enumerate(content.columns):
        table.add_column(Text(printable(column)), justify="left" if index == 0 else "right")
    for row in content.rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console.print(table)
    for line in conclusions(results):
        console.print(Text(printable(line)))
