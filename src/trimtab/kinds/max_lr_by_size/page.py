"""The sections of the report of limits by size."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.kinds.max_lr.agreement import order_agreement
from trimtab.kinds.max_lr.findings import Estimate
from trimtab.kinds.max_lr.table import CAVEAT, limit, result_table
from trimtab.kinds.max_lr.verdicts import verdicts as verdicts_of_one_size
from trimtab.kinds.max_lr_by_size.analysis import LARGER, MEASURES, SizedFindings
from trimtab.kinds.max_lr_by_size.figures import limit_against_size
from trimtab.kinds.max_lr_by_size.results import facts_of, results_of, rows_of
from trimtab.section import Content, Section, Table

TITLES = {"quality": "LR50 (quality)", "collapse": "LR50 (collapse)", "lr_sensitivity": "LR sensitivity"}


def verdicts(findings: SizedFindings) -> list[str]:
    """Return sentences on the trend of each line."""
    lines: list[str] = []
    for trend in findings.trends:
        title, unit = TITLES[trend.measure], "nats" if trend.measure == "lr_sensitivity" else "octaves"
        used = sum(point.used for point in trend.points)
        if trend.per_doubling is None or trend.predicted is None:
            lines.append(f"{trend.line}: no trend of {title}: only {used} of {len(trend.points)} sizes have a value")
            continue
        lines.append(
            f"{trend.line}: {title} changes by {_change(trend.per_doubling)} {unit} with each doubling of the "
            f"parameters of the blocks: {_direction(trend.per_doubling)}"
        )
        if trend.per_width is not None and trend.per_depth is not None:
            lines.append(
                f"{trend.line}: {title} changes by {_change(trend.per_width)} {unit} with each doubling of width and "
                f"by {_change(trend.per_depth)} {unit} with each doubling of depth"
            )
        low, middle, high = trend.predicted
        lines.append(
            f"{trend.line}: extrapolated to {LARGER:g} times the parameters of the largest model "
            f"({trend.predicted_parameters:.3g} parameters), {title} is {middle:.3g} [{low:.2g}, {high:.2g}]; no model "
            "of that size was trained"
        )
    return lines


def _direction(slope: Sequence[float]) -> str:
    if slope[2] < 0:
        return "it falls with size"
    return "it rises with size" if slope[0] > 0 else "cannot tell whether it changes"


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
            "LR50 is the peak learning rate at which half of the runs fail, at the edge of quality and at that of "
            "collapse. LR sensitivity is the mean excess loss over three decades of learning rates, in nats. The "
            "trend is a straight line fitted to log2 of LR50, or to the sensitivity, against log2 of the number of "
            "parameters of the blocks. Each point counts with its own uncertainty and with a scatter about the line "
            "that all points share. The fit does not use bounds.",
            _table(findings),
            [*verdicts(findings), *(f"warning: {warning}" for warning in findings.warnings)],
            on_terminal=True,
        ),
        *(Section(f"{TITLES[m]} against size", charts=[limit_against_size(findings, m)]) for m in MEASURES),
    ]
    for size, one in findings.by_size.items():
        agreement = order_agreement(one)
        lines = [*verdicts_of_one_size(one, agreement), *(f"warning: {warning}" for warning in one.warnings), CAVEAT]
        sections.append(Section(size, table=result_table(one, agreement), lines=lines))
    return sections


def _table(findings: SizedFindings) -> Table:
    rows: list[list[str]] = []
    for measure in MEASURES:
        trends = [trend for trend in findings.trends if trend.measure == measure]
        for index, size in enumerate(findings.by_size):
            points = [trend.points[index] for trend in trends]
            first = points[0]
            cells = [TITLES[measure], size, str(first.width), str(first.num_layers), f"{first.parameters:,}"]
            rows.append(cells + [_value(point.limit) for point in points])
    return Table(["measure", "size", "width", "layers", "parameters", *findings.spec.lines], rows)


def _value(estimate: Estimate) -> str:
    return "-" if estimate.estimate is None and estimate.bound is None else limit(estimate)


def _change(triple: Sequence[float]) -> str:
    low, middle, high = triple
    return f"{middle:+.2f} [{low:+.2f}, {high:+.2f}]"
