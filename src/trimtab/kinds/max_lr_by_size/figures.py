"""The chart of limits against size."""

from __future__ import annotations

import math
from typing import Any

from trimtab.kinds.max_lr_by_size.analysis import LARGER, Measure, SizedFindings, SizeTrend
from trimtab.report.chart import COLOURS, chart_layout, escape
from trimtab.section import Chart


def limit_against_size(findings: SizedFindings, measure: Measure) -> Chart:
    """Return the chart of a measure with its interval against parameters, with the fitted line and its prediction."""
    octaves = measure != "lr_sensitivity"
    data: list[dict[str, Any]] = []
    for index, trend in enumerate(trend for trend in findings.trends if trend.measure == measure):
        colour = COLOURS[index % len(COLOURS)]
        shown = [point for point in trend.points if point.limit.estimate is not None]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": escape(trend.line),
                "x": [point.parameters for point in shown],
                "y": [_height(point.limit.estimate, measure) for point in shown],
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "array": [_between(point.limit.estimate, point.limit.high, measure) for point in shown],
                    "arrayminus": [_between(point.limit.low, point.limit.estimate, measure) for point in shown],
                },
                "customdata": [escape(point.size) for point in shown],
                "marker": {
                    "size": 10,
                    "color": colour,
                    "symbol": ["circle" if point.used else "triangle-up-open" for point in shown],
                },
                "hovertemplate": "%{customdata}: "
                + ("2^%{y:.2f}" if octaves else "%{y:.2f} nats")
                + "<extra>%{fullData.name}</extra>",
            }
        )
        if trend.predicted is not None:
            data.append(_line(trend, colour))
            data.append(_prediction(trend, colour))
    title = "log2 LR50" if octaves else "LR sensitivity (nats)"
    layout = chart_layout("parameters of the blocks", title, 460)
    layout["xaxis"]["type"] = "log"
    caption = (
        "Dots: measured values with 95 % intervals. Open triangles: bounds, which the fit does not use. Line: the fit. "
        f"Diamond: extrapolation to {LARGER:g} times the parameters of the largest model, with a 95 % interval; no "
        "model of that size was trained."
    )
    return Chart(f"{measure}-against-size", f"{title} against size", caption, data, layout)


def _line(trend: SizeTrend, colour: str) -> dict[str, Any]:
    used = [point for point in trend.points if point.used]
    assert trend.per_doubling is not None
    slope = trend.per_doubling[1]
    x = [math.log2(point.parameters) for point in used]
    y = [_height(point.limit.estimate, trend.measure) for point in used]
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
    low, middle, high = (_height(value, trend.measure) for value in trend.predicted)
    return {
        "type": "scatter",
        "mode": "markers",
        "showlegend": False,
        "x": [trend.predicted_parameters],
        "y": [middle],
        "error_y": {"type": "data", "symmetric": False, "array": [high - middle], "arrayminus": [middle - low]},
        "marker": {"size": 11, "symbol": "diamond-open", "color": colour},
        "hovertemplate": "extrapolated: %{y:.2f}<extra></extra>",
    }


def _height(value: float | None, measure: Measure) -> float:
    return (value or 0.0) if measure == "lr_sensitivity" else math.log2(value or 1.0)


def _between(low: float | None, high: float | None, measure: Measure) -> float:
    return 0.0 if low is None or high is None else _height(high, measure) - _height(low, measure)
