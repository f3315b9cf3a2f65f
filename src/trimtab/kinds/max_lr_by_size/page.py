"""The sections of the report of limits by size."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.kinds.max_lr.agreement import order_agreement
from trimtab.kinds.max_lr.table import CAVEAT, limit, result_table
from trimtab.kinds.max_lr.table import verdicts as verdicts_of_one_size
from trimtab.kinds.max_lr_by_size.analysis import LARGER, SizedFindings
from trimtab.kinds.max_lr_by_size.figures import limit_against_size
from trimtab.kinds.max_lr_by_size.results import facts_of, results_of, rows_of
from trimtab.section import Content, Section, Table


def verdicts(findings: SizedFindings) -> list[str]:
    """Return sentences on the trend of each line."""
    lines: list[str] = []
    for trend in findings.trends:
        used = sum(point.used for point in trend.points)
        if trend.per_doubling is None or trend.predicted is None:
            lines.append(f"{trend.line}: no trend: only {used} of {len(trend.points)} sizes have a limit")
            continue
        lines.append(
            f"{trend.line}: LR50 changes by {_octaves(trend.per_doubling)} octaves with each doubling of the "
            f"parameters of the blocks: {_direction(trend.per_doubling)}"
        )
        if trend.per_width is not None and trend.per_depth is not None:
            lines.append(
                f"{trend.line}: LR50 changes by {_octaves(trend.per_width)} octaves with each doubling of width and "
                f"by {_octaves(trend.per_depth)} octaves with each doubling of depth"
            )
        low, middle, high = trend.predicted
        lines.append(
            f"{trend.line}: extrapolated to {LARGER:g} times the parameters of the largest model "
            f"({trend.predicted_parameters:.3g} parameters), LR50 is {middle:.3g} [{low:.2g}, {high:.2g}]; no model of "
            "that size was trained"
        )
    return lines


def _direction(slope: Sequence[float]) -> str:
    if slope[2] < 0:
        return "the limit falls with size"
    return "the limit rises with size" if slope[0] > 0 else "cannot tell whether the limit changes"


def content(findings: SizedFindings) -> Content:
    """Return the content of the report."""
    spec = findings.spec
    return Content(
        lead=f"How does the learning-rate limit change with model size? {len(findings.runs)} runs, "
        f"{len(spec.lines)} arms at {len(spec.sizes)} sizes, {spec.protocol.training.steps} steps each, reference "
        f"{spec.reference}.",
        sections=_sections(findings),
        verdicts=verdicts(findings),
        facts=facts_of(findings),
        results=results_of(findings),
        rows=rows_of(findings),
    )


def _sections(findings: SizedFindings) -> list[Section]:
    sections = [
        Section(
            "The answer",
            "LR50 is the peak learning rate at which half of the runs fail. The trend is a straight line fitted to "
            "log2 of LR50 against log2 of the number of parameters of the blocks. The interval of the trend includes "
            "the uncertainty of each limit and the scatter about the line. The fit does not use bounds.",
            _table(findings),
            [*verdicts(findings), *(f"warning: {warning}" for warning in findings.warnings)],
            on_terminal=True,
        ),
        Section("Limit against size", charts=[limit_against_size(findings)]),
    ]
    for size, one in findings.by_size.items():
        agreement = order_agreement(one)
        lines = [*verdicts_of_one_size(one, agreement), *(f"warning: {warning}" for warning in one.warnings), CAVEAT]
        sections.append(Section(size, table=result_table(one, agreement), lines=lines))
    return sections


def _table(findings: SizedFindings) -> Table:
    sizes = list(findings.by_size)
    rows: list[list[str]] = []
    for index, size in enumerate(sizes):
        points = [trend.points[index] for trend in findings.trends]
        first = points[0]
        cells = [size, str(first.width), str(first.num_layers), f"{first.parameters:,}"]
        rows.append(cells + [limit(point.limit) for point in points])
    return Table(["size", "width", "layers", "parameters", *(trend.line for trend in findings.trends)], rows)


def _octaves(triple: Sequence[float]) -> str:
    low, middle, high = triple
    return f"{middle:+.2f} [{low:+.2f}, {high:+.2f}]"
