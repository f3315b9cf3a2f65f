"""Charts of a comparison of losses: against size, against the reference, against tokens and compute."""

from __future__ import annotations

import math
from typing import Any

from trimtab.kinds.loss_at_lr.findings import Compared, LossFindings
from trimtab.report.chart import COLOURS, category_axis, chart_layout, escape, vertical_line
from trimtab.section import Chart


def losses_by_size(findings: LossFindings) -> list[Chart]:
    """Final loss against the number of blocks, one chart a rate, one line an arm; nothing where there is one depth."""
    depths = {one.name: findings.spec.arms[one.name].protocol.model.num_layers for one in findings.compared}
    if len(set(depths.values())) < 2:
        return []
    charts: list[Chart] = []
    for index, multiple in enumerate(findings.spec.comparison.multiples):
        data: list[dict[str, Any]] = []
        for place, line in enumerate(findings.spec.lines):
            own = [one for one in _at(findings, multiple) if one.place.line == line and math.isfinite(one.loss.mean)]
            own.sort(key=lambda one: depths[one.name])
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": escape(line),
                    "x": [depths[one.name] for one in own],
                    "y": [one.loss.mean for one in own],
                    "error_y": {"type": "data", "array": [_half(one) for one in own], "thickness": 1},
                    "line": {"color": COLOURS[place % len(COLOURS)]},
                    "hovertemplate": "%{x} layers: %{y:.3f} nats<extra>%{fullData.name}</extra>",
                }
            )
        ticks = sorted(set(depths.values()))
        layout = chart_layout("blocks", "final held-out loss (nats)", 420)
        layout["xaxis"] |= {"type": "log", "tickvals": ticks, "ticktext": [str(tick) for tick in ticks]}
        title = f"at {multiple:g}x the LR"
        caption = "Mean over seeds; bars are 95 % intervals over seeds, which pairs of arms share in part."
        charts.append(Chart(f"by-size-{index}", title, caption, data, layout))
    return charts


def differences(findings: LossFindings) -> Chart:
    """Every arm's difference to the reference with its interval, one trace a rate."""
    data: list[dict[str, Any]] = []
    for index, multiple in enumerate(findings.spec.comparison.multiples):
        own = [(one.name, one.difference) for one in _at(findings, multiple) if one.difference is not None]
        half = [0.0 if math.isnan(found.low) else found.high - found.mean for _, found in own]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": f"at {multiple:g}x the LR",
                "x": [found.mean for _, found in own],
                "y": [escape(name) for name, _ in own],
                "error_x": {"type": "data", "array": half},
                "marker": {"size": 10, "color": COLOURS[index % len(COLOURS)]},
                "hovertemplate": "%{y}: %{x:+.3f} nats<extra></extra>",
            }
        )
    names = [one.name for one in findings.compared if one.difference is not None]
    layout = chart_layout("difference in final loss (nats)", "", 140 + 30 * len(set(names)))
    layout["yaxis"] = category_axis([escape(name) for name in dict.fromkeys(names)])
    layout["shapes"] = [vertical_line(0)]
    caption = "Left of the line an arm ends lower than the reference. Bars: 95 % intervals over seeds and text."
    return Chart("differences", "Differences", caption, data, layout)


def curves(findings: LossFindings, *, compute: bool) -> list[Chart]:
    """Held-out loss over the run at the first rate, one chart a size, against tokens or against FLOPs."""
    charts: list[Chart] = []
    lines = list(findings.spec.lines)
    for index, size in enumerate(findings.spec.size_names):
        data: list[dict[str, Any]] = []
        for one in _at(findings, findings.spec.comparison.multiples[0]):
            if one.place.size != size or not one.curve:
                continue
            protocol = findings.spec.arms[one.name].protocol
            per_step = protocol.training.batch_size * protocol.model.context
            unit = per_step * (findings.costs[one.name].flops_per_token if compute else 1.0)
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "name": escape(one.place.line),
                    "x": [step * unit for step, _ in one.curve if step],
                    "y": [loss for step, loss in one.curve if step],
                    "line": {"width": 1.5, "color": COLOURS[lines.index(one.place.line) % len(COLOURS)]},
                    "hovertemplate": "%{x:.3s}: %{y:.3f} nats<extra>%{fullData.name}</extra>",
                }
            )
        layout = chart_layout("FLOPs" if compute else "tokens", "held-out loss (nats)", 340)
        layout["yaxis"]["type"] = "log"
        slug = f"{'compute' if compute else 'tokens'}-{index}"
        charts.append(Chart(slug, size or "all arms", "Mean over seeds, before and after the LR falls.", data, layout))
    return charts


def _at(findings: LossFindings, multiple: float) -> list[Compared]:
    return [one for one in findings.compared if one.multiple == multiple]


def _half(one: Compared) -> float:
    return 0.0 if math.isnan(one.loss.high) else one.loss.high - one.loss.mean
