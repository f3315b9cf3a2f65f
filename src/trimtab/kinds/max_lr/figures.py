"""The charts of the limits of a study: estimates, labels of the runs, posteriors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from trimtab.kinds.max_lr.axes import lr_layout, tested_range
from trimtab.kinds.max_lr.findings import MAIN, EdgeName, LabelledRun, LimitFindings
from trimtab.report.chart import COLOURS, LABEL_COLOURS, category_axis, colour, escape, vertical_line
from trimtab.section import Chart
from trimtab.study.labels import Label

EDGE_STYLES: Mapping[EdgeName, tuple[str, str, str]] = {
    "quality": ("circle", COLOURS[0], "loses quality at (LR50)"),
    "collapse": ("square", COLOURS[1], "collapses at (LR50)"),
}


def limits(findings: LimitFindings) -> Chart:
    """Return the chart of LR50 with its interval at both edges, a row for each arm."""
    data: list[dict[str, Any]] = []
    for edge, (symbol, its_colour, title) in EDGE_STYLES.items():
        estimates = [(name, arm.criteria[MAIN[edge]].breaks.lr50) for name, arm in findings.arms.items()]
        shown = [(name, estimate) for name, estimate in estimates if estimate.estimate is not None]
        x = [math.log2(e.estimate or 1.0) for _, e in shown]
        high = [_span(e.high, e.estimate) for _, e in shown]
        low = [_span(e.estimate, e.low) for _, e in shown]
        bars = {"type": "data", "array": high, "arrayminus": low, "symmetric": False}
        arrows = [
            "triangle-right" if e.bound == "above" else "triangle-left" if e.bound == "below" else symbol
            for _, e in shown
        ]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": title,
                "x": x,
                "y": [escape(name) for name, _ in shown],
                "error_x": bars,
                "marker": {"size": 11, "symbol": arrows, "color": its_colour},
                "hovertemplate": "%{y}: 2^%{x:.2f}<extra></extra>",
            }
        )
    layout = lr_layout(findings, x_title="peak learning rate", height=120 + 34 * len(findings.arms))
    layout["yaxis"] = {"autorange": "reversed", "automargin": True, "type": "category"}
    return Chart(
        "limits",
        "Learning-rate limits",
        "LR50, at which half of the runs fail, with its 95 % interval. Circle: loss of quality. Square: collapse. An "
        "end of an interval outside the tested range is not drawn. Triangle: a bound; the limit is outside the tested "
        "range.",
        data,
        layout,
    )


def label_map(findings: LimitFindings) -> Chart:
    """Return the chart of all runs by arm and LR, in the colour of their labels."""
    data: list[dict[str, Any]] = []
    for label in Label:
        runs = [run for run in findings.runs if run.label is label]
        if runs:
            data.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": label.value,
                    "x": [run.trial.tick.octave for run in runs],
                    "y": [escape(run.trial.arm) for run in runs],
                    "customdata": [[run.trial.seed, _shown_loss(run)] for run in runs],
                    "marker": {
                        "symbol": "square",
                        "size": 12,
                        "color": LABEL_COLOURS[label],
                        "opacity": 0.75,
                        "line": {"width": 1, "color": "rgba(127,127,127,0.6)"},
                    },
                    "hovertemplate": "%{y}, LR 2^%{x:.3f}, seed %{customdata[0]}: %{customdata[1]}<extra>"
                    + label.value
                    + "</extra>",
                }
            )
    layout = lr_layout(findings, x_title="peak learning rate", height=140 + 34 * len(findings.arms))
    layout["yaxis"] = category_axis([escape(name) for name in findings.arms])
    return Chart(
        "label-map",
        "Labels of all runs",
        "Each square is a run. Runs of an arm at the same learning rate overlap.",
        data,
        layout,
    )


def posteriors(findings: LimitFindings) -> list[Chart]:
    """Return, for each edge, the chart of the posteriors of LR50, a curve for each arm."""
    return [_posteriors(findings, edge) for edge in MAIN]


def _posteriors(findings: LimitFindings, edge: EdgeName) -> Chart:
    curves = {name: arm.edges[edge].posterior for name, arm in findings.arms.items()}
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": escape(name),
            "line": {"color": colour(index)},
            "x": list(posterior.log2_lr50),
            "y": list(posterior.probability),
            "hovertemplate": "2^%{x:.2f}<extra>%{fullData.name}</extra>",
        }
        for index, (name, posterior) in enumerate(curves.items())
        if posterior.log2_lr50
    ]
    layout = lr_layout(findings, x_title="LR50", y_title="probability", height=380)
    layout["shapes"] = [vertical_line(x) for x in tested_range(findings)]
    return Chart(
        "posteriors" if edge == "quality" else f"posteriors-{edge}",
        f"Posterior of LR50, edge of {edge}",
        "Posterior probability of the learning rate at which half of the runs fail, per 1/16 octave. Dotted lines: the "
        "lowest and the highest tested rate of all arms. Outside the range of an arm, the report gives only bounds.",
        data,
        layout,
    )


def _span(above: float | None, below: float | None) -> float:
    return 0.0 if above is None or below is None else math.log2(above) - math.log2(below)


def _shown_loss(run: LabelledRun) -> str:
    return "no outcome" if run.outcome is None else f"{run.outcome.final_loss:.3f} nats"
