"""Limits by size as ``results.json``, ``results.csv`` and the sections of their page."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from trimtab.report.figures import COLOURS, Figure, escape
from trimtab.report.loss_figures import chart_layout
from trimtab.report.results import disarmed, finite, heading, provenance, results_of
from trimtab.report.sections import Section
from trimtab.report.tables import ResultTable, conclusions, limit, result_table
from trimtab.study.analysis import Findings
from trimtab.study.max_lr_by_size.analysis import LARGER, SizedFindings, SizeTrend

SCHEMA = 1


def sized_results(findings: SizedFindings) -> dict[str, Any]:
    """The JSON content; numbers that are not finite are null."""
    spec = findings.spec
    return finite(
        {
            "schema": SCHEMA,
            "kind": spec.kind,
            "study": heading(spec, findings.warnings, verdicts(findings)),
            "trends": [asdict(trend) for trend in findings.trends],
            "sizes": {size: _of_size(one) for size, one in findings.by_size.items()},
            "provenance": provenance([run.outcome for run in findings.runs]),
        }
    )


def _of_size(findings: Findings) -> dict[str, Any]:
    """One size by itself; what may differ between equal studies stands once, at the end of the whole."""
    results = results_of(findings, {})
    del results["provenance"]
    return results


def verdicts(findings: SizedFindings) -> list[str]:
    """Each line's trend in a sentence or two."""
    lines: list[str] = []
    for trend in findings.trends:
        used = sum(point.used for point in trend.points)
        if trend.per_doubling is None or trend.predicted is None:
            lines.append(f"{trend.line}: no trend: only {used} of {len(trend.points)} sizes have a limit")
            continue
        lines.append(
            f"{trend.line}: with each doubling of the blocks' parameters LR50 moves by {_octaves(trend.per_doubling)} "
            f"octaves: {_direction(trend.per_doubling)}"
        )
        if trend.per_width is not None and trend.per_depth is not None:
            lines.append(
                f"{trend.line}: {_octaves(trend.per_width)} octaves for each doubling of width, "
                f"{_octaves(trend.per_depth)} of depth"
            )
        low, middle, high = trend.predicted
        lines.append(
            f"{trend.line}: the line, drawn on to {LARGER:g} times the largest ({trend.predicted_parameters:.3g} "
            f"parameters), says LR50 {middle:.3g} [{low:.2g}, {high:.2g}]; nothing of that size was trained"
        )
    return lines


def _direction(slope: Sequence[float]) -> str:
    if slope[2] < 0:
        return "the limit falls with size"
    return "the limit rises with size" if slope[0] > 0 else "cannot tell whether it moves"


def sized_sections(findings: SizedFindings) -> list[Section]:
    """The page, in order."""
    sections = [
        Section(
            "The answer",
            "LR50 is the peak learning rate at which half of the runs fail. The trend is a straight line through log2 "
            "of LR50 against log2 of the blocks' parameters, with the uncertainty of each limit and the scatter about "
            "it; limits that are only bounds are left out of it.",
            _table(findings),
            [*verdicts(findings), *(f"warning: {warning}" for warning in findings.warnings)],
            on_terminal=True,
        ),
        Section("Limit against size", charts=[limit_against_size(findings)]),
    ]
    for size, one in findings.by_size.items():
        results = results_of(one, {})
        sections.append(Section(size, "", result_table(results), conclusions(results)))
    excluded = [f"{run_id}: {reason}" for run_id, reason in sorted(findings.errors.items())] or ["Nothing."]
    return [*sections, Section("What was excluded, and why", lines=excluded)]


def sized_csv(findings: SizedFindings) -> str:
    """One row an arm and size; a cell that a spreadsheet would run as a formula is disarmed."""
    output = io.StringIO()
    writer = csv.writer(output, lineterminator="\n")
    writer.writerow(["arm", "size", "width", "num_layers", "parameters", "lr50", "low", "high", "bound", "used"])
    for trend in findings.trends:
        for point in trend.points:
            found = point.limit
            size = (disarmed(point.size), point.width, point.num_layers, point.parameters)
            writer.writerow(
                (disarmed(trend.line), *size, found.estimate, found.low, found.high, found.bound, point.used)
            )
    return output.getvalue()


def _table(findings: SizedFindings) -> ResultTable:
    sizes = list(findings.by_size)
    rows: list[list[str]] = []
    for index, size in enumerate(sizes):
        points = [trend.points[index] for trend in findings.trends]
        first = points[0]
        cells = [size, str(first.width), str(first.num_layers), f"{first.parameters:,}"]
        rows.append(cells + [limit(asdict(point.limit)) for point in points])
    return ResultTable(["size", "width", "layers", "parameters", *(trend.line for trend in findings.trends)], rows)


def limit_against_size(findings: SizedFindings) -> Figure:
    """LR50 with its interval against parameters, and what the line says of a larger model."""
    data: list[dict[str, Any]] = []
    for index, trend in enumerate(findings.trends):
        colour = COLOURS[index % len(COLOURS)]
        shown = [point for point in trend.points if point.limit.estimate is not None]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": escape(trend.line),
                "x": [point.parameters for point in shown],
                "y": [math.log2(point.limit.estimate or 1.0) for point in shown],
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "array": [_octaves_between(point.limit.estimate, point.limit.high) for point in shown],
                    "arrayminus": [_octaves_between(point.limit.low, point.limit.estimate) for point in shown],
                },
                "customdata": [escape(point.size) for point in shown],
                "marker": {
                    "size": 10,
                    "color": colour,
                    "symbol": ["circle" if point.used else "triangle-up-open" for point in shown],
                },
                "hovertemplate": "%{customdata}: 2^%{y:.2f}<extra>%{fullData.name}</extra>",
            }
        )
        if trend.predicted is not None:
            data.append(_line(trend, colour))
            data.append(_prediction(trend, colour))
    layout = chart_layout("parameters of the blocks", "log2 LR50", 460)
    layout["xaxis"]["type"] = "log"
    caption = (
        "Dots: measured, 95 % intervals; open triangles are only bounds. Line: fitted. Diamond: what the line says of "
        f"a model with {LARGER:g} times the parameters of the largest, with a 95 % interval; none was trained."
    )
    return Figure("limit-against-size", "Limit against size", caption, data, layout)


def _line(trend: SizeTrend, colour: str) -> dict[str, Any]:
    used = [point for point in trend.points if point.used]
    assert trend.per_doubling is not None
    slope = trend.per_doubling[1]
    x = [math.log2(point.parameters) for point in used]
    y = [math.log2(point.limit.estimate or 1.0) for point in used]
    ends = [min(x), math.log2(trend.predicted_parameters)]
    middle_x, middle_y = sum(x) / len(x), sum(y) / len(y)
    return {
        "type": "scatter",
        "mode": "lines",
        "showlegend": False,
        "hoverinfo": "skip",
        "x": [2.0**end for end in ends],
        "y": [middle_y + slope * (end - middle_x) for end in ends],
        "line": {"dash": "dot", "width": 1.5, "color": colour},
    }


def _prediction(trend: SizeTrend, colour: str) -> dict[str, Any]:
    assert trend.predicted is not None
    low, middle, high = (math.log2(value) for value in trend.predicted)
    return {
        "type": "scatter",
        "mode": "markers",
        "showlegend": False,
        "x": [trend.predicted_parameters],
        "y": [middle],
        "error_y": {"type": "data", "symmetric": False, "array": [high - middle], "arrayminus": [middle - low]},
        "marker": {"size": 11, "symbol": "diamond-open", "color": colour},
        "hovertemplate": "the line: 2^%{y:.2f}<extra></extra>",
    }


def _octaves(triple: Sequence[float]) -> str:
    low, middle, high = triple
    return f"{middle:+.2f} [{low:+.2f}, {high:+.2f}]"


def _octaves_between(low: float | None, high: float | None) -> float:
    return 0.0 if low is None or high is None else math.log2(high / low)
