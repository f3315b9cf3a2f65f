"""The charts of the page, as plotly specifications: plain tables of traces and layout.

Text that plotly draws is a small markup language, so every name is escaped before it enters a chart.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trimtab.stats.intervals import mean_interval
from trimtab.study.analysis import Findings, LabelledRun
from trimtab.study.arms import SIXTEENTH
from trimtab.study.labels import Label

# Okabe and Ito's colours, told apart by colour-blind readers, then two greys.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#7B5EA7", "#767676", "#005A32")
LABEL_COLOURS = {
    Label.STABLE: "#009E73",
    Label.RECOVERED: "#56B4E9",
    Label.UNDERTRAINED: "#999999",
    Label.DEGRADED: "#E69F00",
    Label.STUCK: "#CC79A7",
    Label.EXPLODED: "#D55E00",
    Label.NON_FINITE: "#7A0019",
    Label.NO_OUTCOME: "#DDDDDD",
}
LEAST_SEEDS = 3  # for an interval worth drawing
HEADROOM = 0.6  # nats above ln V that the loss axis shows


@dataclass(frozen=True, slots=True)
class Figure:
    """One chart with the sentence that says how to read it."""

    slug: str
    title: str
    caption: str
    data: Sequence[dict[str, Any]]
    layout: dict[str, Any]


def figures(findings: Findings) -> list[Figure]:
    """Every chart of the page, in order."""
    return [
        limits(findings),
        loss_against_lr(findings),
        label_map(findings),
        posteriors(findings),
        *loss_curves(findings),
    ]


def limits(findings: Findings) -> Figure:
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
    return Figure(
        "limits",
        "How far the learning rate goes",
        "Dot: half of the runs fail. Bar: 95 % interval, left out where it leaves the tested range. Tick: a "
        "tenth of the runs fail. A triangle is only a bound: the edge lies beyond the tested range.",
        data,
        layout,
    )


def loss_against_lr(findings: Findings) -> Figure:
    """Final held-out loss against LR, mean over seeds with a 95 % interval where there are several."""
    data: list[dict[str, Any]] = []
    for index, arm in enumerate(findings.arms):
        by_tick: dict[int, list[float]] = {}
        for run in _of(findings, arm):
            if run.outcome is not None and math.isfinite(run.outcome.final_loss):
                by_tick.setdefault(run.trial.tick, []).append(run.outcome.final_loss)
        points = [(tick / SIXTEENTH, *mean_interval(losses), len(losses)) for tick, losses in sorted(by_tick.items())]
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
                "line": {"color": _colour(index)},
                "hovertemplate": "LR 2^%{x}: %{y:.3f} nats, %{customdata} seeds<extra>%{fullData.name}</extra>",
            }
        )
    layout = _layout(findings, x_title="peak learning rate", y_title="final held-out loss (nats)", height=460)
    layout["yaxis"]["range"] = _loss_range(findings)
    layout["shapes"] = [_level(y) for y in (findings.log_vocab, findings.unigram_entropy) if math.isfinite(y)]
    return Figure(
        "loss-against-lr",
        "Final loss against learning rate",
        "Lines join the means over seeds; bars are 95 % intervals where there are three or more. Dotted: the "
        "loss of a uniform guess (ln V) and of unigram frequencies. Losses above the axis are cut.",
        data,
        layout,
    )


def label_map(findings: Findings) -> Figure:
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
                    "x": [run.trial.tick / SIXTEENTH for run in runs],
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
    layout["yaxis"] = {
        "autorange": "reversed",
        "automargin": True,
        "type": "category",
        "categoryorder": "array",
        "categoryarray": [escape(name) for name in findings.arms],
    }
    return Figure(
        "label-map",
        "What became of every run",
        "One square a run; runs at the same learning rate lie on each other.",
        data,
        layout,
    )


def posteriors(findings: Findings) -> Figure:
    """Posterior of LR50, one curve an arm."""
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": escape(name),
            "line": {"color": _colour(index)},
            "x": [x for x, _ in arm.posterior],
            "y": [p for _, p in arm.posterior],
            "hovertemplate": "2^%{x:.2f}<extra>%{fullData.name}</extra>",
        }
        for index, (name, arm) in enumerate(findings.arms.items())
        if arm.posterior
    ]
    layout = _layout(findings, x_title="LR50", y_title="probability", height=380)
    low, high = _tested(findings)
    layout["shapes"] = [
        {
            "type": "line",
            "x0": x,
            "x1": x,
            "y0": 0,
            "y1": 1,
            "yref": "paper",
            "line": {"dash": "dot", "width": 1, "color": "#888"},
        }
        for x in (low, high)
    ]
    return Figure(
        "posteriors",
        "Where each edge lies",
        "Posterior of the learning rate at which half of the runs fail, per 1/16 octave. Dotted: the tested range; "
        "nothing outside it is claimed.",
        data,
        layout,
    )


def loss_curves(findings: Findings) -> list[Figure]:
    """Held-out loss over the run, one chart an arm, the runs of the first sweep."""
    charts: list[Figure] = []
    low, high = _tested(findings)
    for index, arm in enumerate(findings.arms):
        runs = [run for run in _of(findings, arm) if run.trial.round == 0 and run.outcome is not None]
        data: list[dict[str, Any]] = []
        for run in runs:
            assert run.outcome is not None
            curve = [(step, loss) for step, loss in run.outcome.held_out if math.isfinite(loss)]
            share = (run.trial.tick / SIXTEENTH - low) / (high - low)
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "name": f"2^{run.trial.tick / SIXTEENTH:g}",
                    "x": [step for step, _ in curve],
                    "y": [loss for _, loss in curve],
                    "line": {"width": 1.5, "color": _heat(share)},
                    "hovertemplate": "step %{x}: %{y:.3f}<extra>LR 2^"
                    + f"{run.trial.tick / SIXTEENTH:g}, "
                    + run.label.value
                    + "</extra>",
                }
            )
        layout = _layout(findings, x_title="step", y_title="held-out loss (nats)", height=320)
        layout["xaxis"] = {"title": {"text": "step"}}
        layout["showlegend"] = False
        layout["yaxis"]["range"] = _loss_range(findings)
        charts.append(Figure(f"curves-{index}", arm, "", data, layout))
    return charts


def escape(name: str) -> str:
    """A name as plain text in plotly's markup."""
    return html.escape(name, quote=False)  # plotly knows no entity for a quote


def _layout(findings: Findings, *, x_title: str, height: int, y_title: str = "") -> dict[str, Any]:
    low, high = _tested(findings)
    ticks = list(range(math.ceil(low), math.floor(high) + 1))
    return {
        "height": height,
        "margin": {"l": 60, "r": 20, "t": 20, "b": 60},
        # Above the plot, where plotly makes room for as many rows as it takes.
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "hovermode": "closest",
        "xaxis": {
            "title": {"text": x_title},
            "tickvals": ticks,
            "ticktext": [f"2<sup>{tick}</sup>" for tick in ticks],
            "range": [low - 0.5, high + 0.5],
        },
        "yaxis": {"title": {"text": y_title}},
    }


def _level(y: float) -> dict[str, Any]:
    return {
        "type": "line",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "y0": y,
        "y1": y,
        "line": {"dash": "dot", "width": 1, "color": "#888"},
    }


def _loss_range(findings: Findings) -> list[float]:
    finals = [run.outcome.final_loss for run in findings.runs if run.outcome is not None]
    finite = [loss for loss in finals if math.isfinite(loss)] or [0.0, 1.0]
    ceiling = findings.unigram_entropy + HEADROOM
    top = min(max(finite), ceiling) if math.isfinite(ceiling) else max(finite)
    return [min(finite) - 0.1, top + 0.1]


def _tested(findings: Findings) -> tuple[float, float]:
    sweep = findings.spec.learning_rates.sweep()
    return sweep[0] / SIXTEENTH, sweep[-1] / SIXTEENTH


def _of(findings: Findings, arm: str) -> list[LabelledRun]:
    return [run for run in findings.runs if run.trial.arm == arm]


def _span(above: float | None, below: float | None) -> float:
    return 0.0 if above is None or below is None else math.log2(above) - math.log2(below)


def _shown_loss(run: LabelledRun) -> str:
    return "no outcome" if run.outcome is None else f"{run.outcome.final_loss:.3f} nats"


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _heat(share: float) -> str:
    """From blue (lowest LR) through grey to red (highest)."""
    red, blue = round(40 + 190 * share), round(220 - 190 * share)
    return f"rgb({red},{90 if share < 0.5 else 70},{blue})"
