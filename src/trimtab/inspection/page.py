"""Summaries as a page with charts: by checkpoint if there are several, otherwise by layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from trimtab.inspection.show import trajectory
from trimtab.inspection.summary import Summary
from trimtab.inspection.tev import TevPoint, axis_of
from trimtab.report.chart import escape
from trimtab.report.html import page_template, resource, script_safe


def page(summaries: Sequence[Summary]) -> str:
    """The charts as one HTML file that needs no other file."""
    charts = _over_checkpoints(summaries) if len(summaries) > 1 else _over_layers(summaries[0])
    return _rendered([summary.name for summary in summaries], charts)


def tev_page(points: Sequence[TevPoint]) -> str:
    """Mean and spread of TEV of a family, against step, size or order, as one HTML file."""
    axis, x = axis_of(points)
    charts: dict[str, tuple[str, dict[str, Any]]] = {}
    for index, (name, title) in enumerate((("tev_mean", "mean"), ("tev_std", "spread"))):
        traces: dict[str, tuple[list[Any], list[float]]] = {}
        for place, point in zip(x, points, strict=True):
            places, values = traces.setdefault(_family(point, points), ([], []))
            places.append(place)
            values.append(point.tev[name])
        chart = _chart(traces)
        chart["layout"]["xaxis"] = {"title": {"text": axis}, "type": "log" if axis == "parameters" else "linear"}
        if axis == "checkpoint":
            names = [escape(point.name) for point in points]
            chart["layout"]["xaxis"] |= {"tickvals": x, "ticktext": names, "automargin": True}
        charts[f"chart-{index}"] = (f"TEV, {title} over the vocabulary, against {axis}", chart)
    return _rendered(list(dict.fromkeys(_family(point, points) for point in points)), charts)


def _family(point: TevPoint, points: Sequence[TevPoint]) -> str:
    """The name of the line of a point: one line per run, and one for all checkpoints."""
    return point.name.split(" at step ")[0] if any(" at step " in one.name for one in points) else "TEV"


def _rendered(names: Sequence[str], charts: dict[str, tuple[str, dict[str, Any]]]) -> str:
    template = page_template("inspection.html.j2")
    escaped = {slug: script_safe(chart) for slug, (_, chart) in charts.items()}
    return template.render(
        names=names,
        titles={slug: title for slug, (title, _) in charts.items()},
        chart_data=escaped,
        plotly=resource("vendor/plotly-basic.min.js"),
        draw=resource("templates/draw.js"),
        style=resource("templates/style.css"),
    )


def _over_checkpoints(summaries: Sequence[Summary]) -> dict[str, tuple[str, dict[str, Any]]]:
    names = [escape(f"{index}: {summary.name}") for index, summary in enumerate(summaries)]
    return {
        f"chart-{index}": (title, _chart({"": (names, values)}))
        for index, (title, values) in enumerate(trajectory(summaries).items())
    }


def _over_layers(summary: Summary) -> dict[str, tuple[str, dict[str, Any]]]:
    charts: dict[str, tuple[str, dict[str, Any]]] = {}
    for index, (statistic, title) in enumerate((("rms", "RMS"), ("spectral_norm", "spectral norm"))):
        traces: dict[str, tuple[list[Any], list[float]]] = {}
        for matrix in summary.matrices:
            if matrix.layer is not None:
                layers, values = traces.setdefault(matrix.group, ([], []))
                layers.append(matrix.layer)
                values.append(getattr(matrix, statistic))
        charts[f"chart-{index}"] = (f"{title} by layer", _chart(traces))
    return charts


def _chart(traces: dict[str, tuple[list[Any], list[float]]]) -> dict[str, Any]:
    data = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": escape(name),
            "x": x,
            "y": [value if math.isfinite(value) else None for value in y],
        }
        for name, (x, y) in traces.items()
    ]
    layout = {"height": 320, "margin": {"l": 60, "r": 20, "t": 20, "b": 60}, "showlegend": len(data) > 1}
    return {"data": data, "layout": layout}
