"""The charts of the held-out loss of a study of limits: against the learning rate, and against the step."""

from __future__ import annotations

import math
from typing import Any

from trimtab.kinds.max_lr.axes import lr_layout, tested_range
from trimtab.kinds.max_lr.findings import LabelledRun, LimitFindings
from trimtab.report.chart import colour, escape, horizontal_line
from trimtab.section import Chart
from trimtab.stats.intervals import mean_interval
from trimtab.study.trial import Tick

LEAST_SEEDS = 3  # fewer seeds get no interval
HEADROOM = 0.6  # nats above unigram entropy at which the loss axis ends


def loss_against_lr(findings: LimitFindings) -> Chart:
    """Return the chart of the final held-out loss against LR: mean over seeds, with a 95 % interval from 3 seeds on."""
    data: list[dict[str, Any]] = []
    for index, arm in enumerate(findings.arms):
        by_tick: dict[Tick, list[float]] = {}
        for run in _runs_of(findings, arm):
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
    layout = lr_layout(findings, x_title="peak learning rate", y_title="final held-out loss (nats)", height=460)
    layout["yaxis"]["range"] = _loss_range(findings)
    layout["shapes"] = [horizontal_line(y) for y in (findings.log_vocab, findings.unigram_entropy) if math.isfinite(y)]
    return Chart(
        "loss-against-lr",
        "Final loss against learning rate",
        "Lines connect the means over seeds. Bars are 95 % intervals, drawn for three or more seeds. Dotted lines: the "
        "loss of a uniform guess (ln V) and of unigram frequencies. Losses above the axis are not shown.",
        data,
        layout,
    )


def loss_curves(findings: LimitFindings) -> list[Chart]:
    """Return a chart for each arm: held-out loss against step, for the runs of the first sweep."""
    charts: list[Chart] = []
    low, high = tested_range(findings)
    for index, arm in enumerate(findings.arms):
        runs = [run for run in _runs_of(findings, arm) if run.trial.round == 0 and run.outcome is not None]
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
        layout = lr_layout(findings, x_title="step", y_title="held-out loss (nats)", height=320)
        layout["xaxis"] = {"title": {"text": "step"}}
        layout["showlegend"] = False
        layout["yaxis"]["range"] = _loss_range(findings)
        charts.append(Chart(f"curves-{index}", arm, "", data, layout))
    return charts


def _loss_range(findings: LimitFindings) -> list[float]:
    finals = [run.outcome.final_loss for run in findings.runs if run.outcome is not None]
    finite = [loss for loss in finals if math.isfinite(loss)] or [0.0, 1.0]
    ceiling = findings.unigram_entropy + HEADROOM
    top = min(max(finite), ceiling) if math.isfinite(ceiling) else max(finite)
    return [min(finite) - 0.1, top + 0.1]


def _runs_of(findings: LimitFindings, arm: str) -> list[LabelledRun]:
    return [run for run in findings.runs if run.trial.arm == arm]


def _heat(share: float) -> str:
    """Return a colour between blue (lowest LR) and red (highest LR)."""
    red, blue = round(40 + 190 * share), round(220 - 190 * share)
    return f"rgb({red},{90 if share < 0.5 else 70},{blue})"
