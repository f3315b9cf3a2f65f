"""The charts of a study of signals: prediction, TEV against variance, TEV by token, variance by layer."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from trimtab.kinds.signals.analysis import PREDICTORS, group_of
from trimtab.kinds.signals.findings import SignalFindings, SignalRun
from trimtab.kinds.signals.traces import BIN_EDGES, GROUPS
from trimtab.report.chart import COLOURS, DOTTED, LABEL_COLOURS, chart_layout, escape
from trimtab.section import Chart
from trimtab.study.labels import Label

DRAWN = ("loss and gradient norm", "TEV", "gradient variance", "loss, gradient norm and TEV")
READINGS_DRAWN = 12
LAYER = re.compile(r"variance_layer_(\d+)$")


def prediction_curves(findings: SignalFindings) -> Chart:
    """Return the chart of the area under the ROC curve against the fraction of the run that is used."""
    data: list[dict[str, Any]] = []
    for index, name in enumerate(PREDICTORS):
        points = [one for one in findings.predicted if one.predictor == name and math.isfinite(one.area.estimate)]
        above = [_span(point.area.same_high - point.area.estimate) for point in points]
        below = [_span(point.area.estimate - point.area.same_low) for point in points]
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": name,
                "visible": True if name in DRAWN else "legendonly",
                "x": [point.fraction for point in points],
                "y": [point.area.estimate for point in points],
                "error_y": {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "thickness": 0.7},
                "line": {"color": COLOURS[index % len(COLOURS)]},
                "hovertemplate": "%{x:.0%} of the run: %{y:.2f}<extra>%{fullData.name}</extra>",
            }
        )
    layout = chart_layout("share of the run that is used", "area under the ROC curve", 460)
    layout["xaxis"] |= {"range": [0, 1.02], "tickformat": ".0%"}
    layout["yaxis"]["range"] = [0, 1.02]
    layout["shapes"] = [{"type": "line", "x0": 0, "x1": 1, "y0": 0.5, "y1": 0.5, "line": DOTTED}]
    caption = (
        "Dotted line: random guess. Bars: 95 % intervals over seeds, for the methods of this study. Click a name to "
        "show or hide its line."
    )
    return Chart("prediction", "Prediction over the run", caption, data, layout)


def _span(length: float) -> float:
    return max(0.0, length) if math.isfinite(length) else 0.0


def scatters(findings: SignalFindings) -> list[Chart]:
    """Return a chart for each size and text: TEV against gradient variance at the last fraction, coloured by label."""
    fraction = max(findings.spec.signals.fractions)
    charts: list[Chart] = []
    for index, (group, runs) in enumerate(_grouped(findings).items()):
        data: list[dict[str, Any]] = []
        for label in Label:
            labelled = [run for run in runs if run.outcome_label is label]
            steps = [fraction * findings.spec.arms[run.trial.arm].protocol.training.steps for run in labelled]
            points = [
                (run.trace.at("tev_mean", step), run.trace.at("variance", step), run)
                for run, step in zip(labelled, steps, strict=True)
            ]
            points = [point for point in points if all(math.isfinite(value) and value > 0 for value in point[:2])]
            if points:
                data.append(
                    {
                        "type": "scatter",
                        "mode": "markers",
                        "name": label.value,
                        "x": [x for x, _, _ in points],
                        "y": [y for _, y, _ in points],
                        "text": [
                            escape(f"{run.trial.arm} at LR {run.trial.learning_rate:.3g}, seed {run.trial.seed}")
                            for _, _, run in points
                        ],
                        "marker": {"size": 8, "color": LABEL_COLOURS[label]},
                        "hovertemplate": "%{text}<br>TEV %{x:.3g}, variance %{y:.3g}<extra>%{fullData.name}</extra>",
                    }
                )
        layout = chart_layout("TEV, mean over the vocabulary", "gradient variance", 380)
        layout["xaxis"]["type"] = layout["yaxis"]["type"] = "log"
        caption = "Each dot is a run."
        charts.append(Chart(f"scatter-{index}", f"{group} at {fraction:.0%} of the run", caption, data, layout))
    return charts


def ridgelines(findings: SignalFindings) -> list[Chart]:
    """Return charts of TEV of frequent and rare tokens over training, of a sound and a failing run of each group."""
    charts: list[Chart] = []
    for group, runs in _grouped(findings).items():
        kept = [run for run in runs if len(run.trace.histogram)]
        for fails in (False, True):
            chosen = next((run for run in kept if run.fails is fails), None)
            if chosen is not None:
                charts.append(_ridgeline(len(charts), group, chosen))
    return charts


def _ridgeline(index: int, group: str, run: SignalRun) -> Chart:
    rows = np.unique(np.linspace(0, len(run.trace.steps) - 1, READINGS_DRAWN).round().astype(int))
    centres = [float(value) for value in np.sqrt(BIN_EDGES[:-1] * BIN_EDGES[1:])]
    data: list[dict[str, Any]] = []
    for place, row in enumerate(rows.tolist()):
        for which in (0, 1):  # frequent and rare
            share = run.trace.histogram[row, which]
            if not share.sum():
                continue
            base = {"type": "scatter", "mode": "lines", "x": centres, "showlegend": False, "hoverinfo": "skip"}
            data.append(base | {"y": [place] * len(centres), "line": {"width": 0}})
            data.append(
                base
                | {
                    "y": [place + 1.6 * value for value in share.tolist()],
                    "name": GROUPS[which],
                    "showlegend": place == 0,
                    "fill": "tonexty",
                    "opacity": 0.7,
                    "line": {"width": 1, "color": COLOURS[which]},
                }
            )
    layout = chart_layout("TEV", "step", 420)
    layout["xaxis"] |= {"type": "log", **_extent(run)}
    layout["yaxis"] |= {
        "tickvals": list(range(len(rows))),
        "ticktext": [str(int(run.trace.steps[row])) for row in rows],
    }
    trial = run.trial
    title = f"{run.outcome_label.value}: {escape(trial.arm)} at LR {trial.learning_rate:.3g}, seed {trial.seed}"
    return Chart(f"ridgeline-{index}", title, group, data, layout)


def _extent(run: SignalRun) -> dict[str, list[float]]:
    seen = np.flatnonzero(run.trace.histogram.sum((0, 1)))
    if not len(seen):
        return {}
    return {"range": [math.log10(BIN_EDGES[seen[0]]) - 0.1, math.log10(BIN_EDGES[seen[-1] + 1]) + 0.1]}


def layers(findings: SignalFindings) -> list[Chart]:
    """Return charts of the share of each layer in the gradient variance at half of the run, by failure."""
    charts: list[Chart] = []
    for index, (group, runs) in enumerate(_grouped(findings).items()):
        data: list[dict[str, Any]] = []
        for place, fails in enumerate((False, True)):
            profiles = [_profile(findings, run) for run in runs if run.fails is fails]
            profiles = [profile for profile in profiles if profile]
            names = list(dict.fromkeys(name for profile in profiles for name in profile))
            if not profiles:
                continue
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": "failing runs" if fails else "sound runs",
                    "x": names,
                    "y": [
                        float(np.median([profile[name] for profile in profiles if name in profile])) for name in names
                    ],
                    "line": {"color": COLOURS[place]},
                    "hovertemplate": "%{x}: %{y:.1%}<extra>%{fullData.name}</extra>",
                }
            )
        layout = chart_layout("", "share of the gradient variance of the model", 340)
        layout["yaxis"] |= {"tickformat": ".0%", "rangemode": "tozero"}
        charts.append(Chart(f"layers-{index}", group, "Median over runs, at half of the run.", data, layout))
    return charts


def _profile(findings: SignalFindings, run: SignalRun) -> dict[str, float]:
    step = findings.spec.arms[run.trial.arm].protocol.training.steps / 2
    whole = run.trace.at("variance", step)
    if not math.isfinite(whole) or whole <= 0:
        return {}
    numbers = sorted(int(found[1]) for name in run.trace.signals if (found := LAYER.match(name)))
    shares = {"embedding": run.trace.at("variance_embedding", step) / whole}
    shares |= {f"layer {number}": run.trace.at(f"variance_layer_{number}", step) / whole for number in numbers}
    return shares | {"other parameters": 1 - sum(shares.values())}


def _grouped(findings: SignalFindings) -> dict[str, Sequence[SignalRun]]:
    """Return the runs of each size and text, by a name for both."""
    groups: dict[tuple[str, str], list[SignalRun]] = {}
    for run in findings.runs:
        groups.setdefault(group_of(findings.spec, run), []).append(run)
    several = len({text for _, text in groups}) > 1
    names: dict[str, Sequence[SignalRun]] = {}
    for (size, text), runs in groups.items():
        vocabulary = findings.spec.arms[runs[0].trial.arm].protocol.data.vocab_size
        name = ", ".join(part for part in (size, f"vocabulary {vocabulary:,}" if several else "") if part)
        names[name if name not in names else f"{name}, {text}"] = runs
    return names
