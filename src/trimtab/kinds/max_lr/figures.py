"""The charts of a study of limits."""

from __future__ import annotations

import math
from typing import Any

from trimtab.kinds.max_lr.findings import LabelledRun, LimitFindings
from trimtab.report.chart import (
    COLOURS,
    LABEL_COLOURS,
    category_axis,
    chart_layout,
    colour,
    escape,
    horizontal_line,
    vertical_line,
)
from trimtab.section import Chart
from trimtab.stats.intervals import mean_interval
from trimtab.study.labels import Label
from trimtab.study.trial import Tick

LEAST_SEEDS = 3  # for an interval worth drawing
HEADROOM = 0.6  # nats above ln V that the loss axis shows


def limits(findings: LimitFindings) -> Chart:
    """LR50 with its interval, and LR10, one line an arm."""
    names = list(findings.arms)
    data: list[dict[str, Any]] = []
    for level, symbol, title in (("lr50", "circle", "breaks at (LR50)"), ("lr10", "line-ns-open", "safe up to (LR10)")):
        found = [getattr(findings.arms[name].criteria["d"].breaks, level) for name in names]
        # A bound of LR10 says no more than that of LR50, which it would cover.
        shown = [
            (name, e)
            for name, e in zip(names, found, strict=True)
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
    layout = _layout(findings, x_title="peak learning rate", height=120 + 34 * len(names))
    layout["yaxis"] = {"autorange": "reversed", "automargin": True, "type": "category"}
    return Chart(
        "limits",
        "How far the learning rate goes",
        "Dot: half of the runs fail. Bar: 95 % interval, left out where it leaves the tested range. Tick: a "
        "tenth of the runs fail. A triangle is only a bound: the edge lies beyond the tested range.",
        data,
        layout,
    )


def loss_against_lr(findings: LimitFindings) -> Chart:
    """Final held-out loss against LR, mean over seeds with a 95 % interval where there are several."""
    data: list[dict[str, Any]] = []
    for index, arm in enumerate(findings.arms):
        by_tick: dict[Tick, list[float]] = {}
        for run in _of(findings, arm):
            if run.outcome is not None and math.isfinite(run.outcome.final_loss):
                by_tick.setdefault(run.trial.tick, []).append(run.outcome.final_loss)
        points = [(tick.octave, *mean_interval(losses), len(losses)) for tick, losses in sorted(by_tick.items())]
        half = [high - mean if n >= LEAST_SEEDS else 0.0 for _, mean, _, high, n in points]
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": escape(arm),
                "x": [x for x, *_ in points],
                "y": [mean for _, mean, *_ in points],
                "error_y": {"type": "data", "array": half, "thickness": 1},
                "customdata": [n for *_, n in points],
                "line": {"color": colour(index)},
                "hovertemplate": "LR 2^%{x}: %{y:.3f} nats, %{customdata} seeds<extra>%{fullData.name}</extra>",
            }
        )
    layout = _layout(findings, x_title="peak learning rate", y_title="final held-out loss (nats)", height=460)
    layout["yaxis"]["range"] = _loss_range(findings)
    layout["shapes"] = [horizontal_line(y) for y in (findings.log_vocab, findings.unigram_entropy) if math.isfinite(y)]
    return Chart(
        "loss-against-lr",
        "Final loss against learning rate",
        "Lines join the means over seeds; bars are 95 % intervals where there are three or more. Dotted: the "
        "loss of a uniform guess (ln V) and of unigram frequencies. Losses above the axis are cut.",
        data,
        layout,
    )


def label_map(findings: LimitFindings) -> Chart:
    """Every run, by arm and LR, coloured by its label."""
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
    layout = _layout(findings, x_title="peak learning rate", height=140 + 34 * len(findings.arms))
    layout["yaxis"] = category_axis([escape(name) for name in findings.arms])
    return Chart(
        "label-map",
        "What became of every run",
        "One square a run; runs at the same learning rate lie on each other.",
        data,
        layout,
    )


def posteriors(findings: LimitFindings) -> Chart:
    """Posterior of LR50, one curve an arm."""
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
    layout = _layout(findings, x_title="LR50", y_title="probability", height=380)
    layout["shapes"] = [vertical_line(x) for x in _tested(findings)]
    return Chart(
        "posteriors",
        "Where each edge lies",
        "Posterior of the learning rate at which half of the runs fail, per 1/16 octave. Dotted: the tested range; "
        "nothing outside it is claimed.",
        data,
        layout,
    )


def loss_curves(findings: LimitFindings) -> list[Chart]:
    """Held-out loss over the run, one chart an arm, the runs of the first sweep."""
    charts: list[Chart] = []
    low, high = _tested(findings)
    for index, arm in enumerate(findings.arms):
        runs = [run for run in _of(findings, arm) if run.trial.round == 0 and run.outcome is not None]
        data: list[dict[str, Any]] = []
        for run in runs:
            assert run.outcome is not None
            curve = [(step, loss) for step, loss in run.outcome.held_out if math.isfinite(loss)]
            share = (run.trial.tick.octave - low) / (high - low)
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "name": f"2^{run.trial.tick.octave:g}",
                    "x": [step for step, _ in curve],
                    "y": [loss for _, loss in curve],
                    "line": {"width": 1.5, "color": _heat(share)},
                    "hovertemplate": "step %{x}: %{y:.3f}<extra>LR 2^"
                    + f"{run.trial.tick.octave:g}, "
                    + run.label.value
                    + "</extra>",
                }
            )
        layout = _layout(findings, x_title="step", y_title="held-out loss (nats)", height=320)
        layout["xaxis"] = {"title": {"text": "step"}}
        layout["showlegend"] = False
        layout["yaxis"]["range"] = _loss_range(findings)
        charts.append(Chart(f"curves-{index}", arm, "", data, layout))
    return charts


def _layout(findings: LimitFindings, *, x_title: str, height: int, y_title: str = "") -> dict[str, Any]:
    low, high = _tested(findings)
    ticks = list(range(math.ceil(low), math.floor(high) + 1))
    layout = chart_layout(x_title, y_title, height)
    layout["xaxis"] |= {
        "tickvals": ticks,
        "ticktext": [f"2<sup>{tick}</sup>" for tick in ticks],
        "range": [low - 0.5, high + 0.5],
    }
    return layout


def _loss_range(findings: LimitFindings) -> list[float]:
    finals = [run.outcome.final_loss for run in findings.runs if run.outcome is not None]
    finite = [loss for loss in finals if math.isfinite(loss)] or [0.0, 1.0]
    ceiling = findings.unigram_entropy + HEADROOM
    top = min(max(finite), ceiling) if math.isfinite(ceiling) else max(finite)
    return [min(finite) - 0.1, top + 0.1]


def _tested(findings: LimitFindings) -> tuple[float, float]:
    ticks = findings.spec.ticks()
    return ticks[0].octave, ticks[-1].octave


def _of(findings: LimitFindings, arm: str) -> list[LabelledRun]:
    return [run for run in findings.runs if run.trial.arm == arm]


def _span(above: float | None, below: float | None) -> float:
    return 0.0 if above is None or below is None else math.log2(above) - math.log2(below)


def _shown_loss(run: LabelledRun) -> str:
    return "no outcome" if run.outcome is None else f"{run.outcome.final_loss:.3f} nats"


def _heat(share: float) -> str:
    """From blue (lowest LR) through grey to red (highest)."""
    red, blue = round(40 + 190 * share), round(220 - 190 * share)
    return f"rgb({red},{90 if share < 0.5 else 70},{blue})"
