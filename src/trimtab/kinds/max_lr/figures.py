"""The charts of the limits of a study: estimates, labels of the runs, posteriors."""

from __future__ import annotations

import math
from typing import Any

from trimtab.kinds.max_lr.axes import lr_layout, tested_range
from trimtab.kinds.max_lr.findings import LabelledRun, LimitFindings
from trimtab.report.chart import COLOURS, LABEL_COLOURS, category_axis, colour, escape, vertical_line
from trimtab.section import Chart
from trimtab.study.labels import Label


def limits(findings: LimitFindings) -> Chart:
    """Return the chart of LR50 with its interval and of LR10, a row for each arm."""
    names = list(findings.arms)
    data: list[dict[str, Any]] = []
    for level, symbol, title in (("lr50", "circle", "breaks at (LR50)"), ("lr10", "line-ns-open", "safe up to (LR10)")):
        estimates = [getattr(findings.arms[name].criteria["d"].breaks, level) for name in names]
        # A bound of LR10 lies on the same point as the bound of LR50 and would cover it.
        shown = [
            (name, e)
            for name, e in zip(names, estimates, strict=True)
            if e.estimate is not None and (level == "lr50" or e.bound is None)
        ]
        x = [math.log2(e.estimate) for _, e in shown]
        high = [_span(e.high, e.estimate) for _, e in shown]
        low = [_span(e.estimate, e.low) for _, e in shown]
        bars = {"type": "data", "array": high, "arrayminus": low, "symmetric": False, "visible": level == "lr50"}
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
                "marker": {"size": 11, "symbol": arrows, "color": COLOURS[0 if level == "lr50" else 1]},
                "hovertemplate": "%{y}: 2^%{x:.2f}<extra></extra>",
            }
        )
    layout = lr_layout(findings, x_title="peak learning rate", height=120 + 34 * len(names))
    layout["yaxis"] = {"autorange": "reversed", "automargin": True, "type": "category"}
    return Chart(
        "limits",
        "Learning-rate limits",
        "Dot: LR50, at which half of the runs fail. Bar: 95 % interval of LR50; an end outside the tested range is not "
        "drawn. Vertical tick: LR10, at which a tenth of the runs fail. Triangle: a bound; the limit is outside the "
        "tested range.",
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


def posteriors(findings: LimitFindings) -> Chart:
    """Return the chart of the posteriors of LR50, a curve for each arm."""
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": escape(name),
            "line": {"color": colour(index)},
            "x": list(arm.posterior.log2_lr50),
            "y": list(arm.posterior.probability),
            "hovertemplate": "2^%{x:.2f}<extra>%{fullData.name}</extra>",
        }
        for index, (name, arm) in enumerate(findings.arms.items())
        if arm.posterior.log2_lr50
    ]
    layout = lr_layout(findings, x_title="LR50", y_title="probability", height=380)
    layout["shapes"] = [vertical_line(x) for x in tested_range(findings)]
    return Chart(
        "posteriors",
        "Posterior of LR50",
        "Posterior probability of the learning rate at which half of the runs fail, per 1/16 octave. Dotted lines: the "
        "ends of the tested range. Outside the range, the report gives only bounds.",
        data,
        layout,
    )


def _span(above: float | None, below: float | None) -> float:
    return 0.0 if above is None or below is None else math.log2(above) - math.log2(below)


def _shown_loss(run: LabelledRun) -> str:
    return "no outcome" if run.outcome is None else f"{run.outcome.final_loss:.3f} nats"
