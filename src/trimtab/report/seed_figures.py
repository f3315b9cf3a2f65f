"""The charts of the view of seeds: loss curves with outliers, variance by source, the training map."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from trimtab.report.chart import COLOURS, chart_layout, escape
from trimtab.section import Chart
from trimtab.stats.components import Component, Components
from trimtab.study.seed_groups import SeedGroup

PLAIN = "rgba(128,128,128,0.45)"
UNREPEATED: Mapping[str, str] = {
    "rows": "initial weights",
    "columns": "order of the data",
    "rest": "interaction and numerics",
}
REPEATED: Mapping[str, str] = {
    "rows": "initial weights",
    "columns": "order of the data",
    "interaction": "interaction",
    "numerics": "numerics",
}


def sources(components: Components) -> Mapping[str, str]:
    """Return the parts of the variance and their titles; repeats divide the residual into two parts."""
    return REPEATED if components.repeats else UNREPEATED


def spaghetti(index: int, group: SeedGroup) -> Chart:
    """Return the chart of the held-out loss of every run, with outliers in colour and in the legend."""
    far = {run.run_id: COLOURS[(1 + place) % len(COLOURS)] for place, run in enumerate(group.outliers)}
    data: list[dict[str, Any]] = []
    for run in sorted(group.runs, key=lambda run: run.is_outlier):
        curve = [] if run.outcome is None else run.outcome.held_out
        points = [(step, loss) for step, loss in curve if math.isfinite(loss)]
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": escape(run.name),
                "showlegend": run.is_outlier,
                "x": [step for step, _ in points],
                "y": [loss for _, loss in points],
                "line": {"width": 2 if run.is_outlier else 1, "color": far.get(run.run_id, PLAIN)},
                "hovertemplate": "step %{x}: %{y:.3f} nats<extra>%{fullData.name}</extra>",
            }
        )
    layout = chart_layout("step", "held-out loss (nats)", 360)
    layout["yaxis"]["type"] = "log"
    caption = "Each line is a run. Coloured lines: final loss more than 2 standard deviations from the mean."
    return Chart(f"seeds-curves-{index}", title_of(group), caption, data, layout)


def variance_bars(index: int, group: SeedGroup) -> Chart | None:
    """Return the chart of the share of each source in the variance of the final loss; None without a two-way design."""
    if group.components is None:
        return None
    titles = sources(group.components)
    parts: list[Component] = [getattr(group.components, name) for name in titles]
    data = [
        {
            "type": "bar",
            "x": list(titles.values()),
            "y": [part.share for part in parts],
            "error_y": {
                "type": "data",
                "symmetric": False,
                "array": [max(0.0, part.share_high - part.share) for part in parts],
                "arrayminus": [max(0.0, part.share - part.share_low) for part in parts],
            },
            "marker": {"color": list(COLOURS[: len(parts)])},
            "hovertemplate": "%{x}: %{y:.0%}<extra></extra>",
        }
    ]
    layout = chart_layout("", "share of the variance of the final loss", 360)
    layout["yaxis"] |= {"range": [0, 1], "tickformat": ".0%"}
    return Chart(f"seeds-variance-{index}", f"variance, {title_of(group)}", "Bars show 95 % intervals.", data, layout)


def training_map_chart(index: int, group: SeedGroup) -> Chart | None:
    """Return the chart of the state of each run over its steps; None without a map."""
    if group.map is None:
        return None
    order = sorted(
        range(len(group.runs)), key=lambda run: (not math.isfinite(group.runs[run].loss), group.runs[run].loss)
    )
    data: list[dict[str, Any]] = []
    for state in range(group.map.states):
        x: list[int] = []
        y: list[str] = []
        for run in order:
            steps = group.runs[run].facts.steps
            at = [int(step) for step, at_step in zip(steps, group.map.paths[run], strict=False) if at_step == state]
            x += at
            y += [_label(group, run)] * len(at)
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": f"state {state}",
                "x": x,
                "y": y,
                "marker": {"symbol": "square", "size": 9, "color": COLOURS[state % len(COLOURS)]},
                "hovertemplate": "%{y}, step %{x}<extra>%{fullData.name}</extra>",
            }
        )
    forked = [(run, fork) for run in order if (fork := group.runs[run].fork) is not None]
    data.append(
        {
            "type": "scatter",
            "mode": "markers",
            "name": "fork",
            "showlegend": bool(forked),
            "x": [int(group.runs[run].facts.steps[fork.checkpoint]) for run, fork in forked],
            "y": [_label(group, run) for run, _ in forked],
            "marker": {"symbol": "x-thin-open", "size": 12, "color": "#000000", "line": {"width": 2}},
            "hovertemplate": "%{y} forks at step %{x}<extra></extra>",
        }
    )
    layout = chart_layout("step", "", 140 + 16 * len(group.runs))
    layout["yaxis"] = {
        "type": "category",
        "automargin": True,
        "dtick": 1,
        "categoryorder": "array",
        "categoryarray": [_label(group, run) for run in order],
    }
    caption = (
        "Runs are ordered by final loss, the lowest at the bottom. States are numbered by the mean step at which "
        "runs are in them."
    )
    return Chart(f"seeds-map-{index}", f"training map, {title_of(group)}", caption, data, layout)


def title_of(group: SeedGroup) -> str:
    """Return the name of a group in charts: arm and learning rate."""
    return f"{escape(group.arm)} at LR {group.learning_rate:.3g}"


def _label(group: SeedGroup, run: int) -> str:
    seed_run = group.runs[run]
    return escape(f"{seed_run.name}: {seed_run.loss:.3f}{' (outlier)' if seed_run.is_outlier else ''}")
