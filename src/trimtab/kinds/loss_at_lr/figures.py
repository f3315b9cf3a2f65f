"""The charts of a comparison of losses: against size, against the reference, against tokens and compute."""

from __future__ import annotations

import math
from typing import Any

from trimtab.kinds.loss_at_lr.findings import Compared, LossFindings
from trimtab.report.chart import COLOURS, category_axis, chart_layout, escape, vertical_line
from trimtab.section import Chart


def losses_by_size(findings: LossFindings) -> list[Chart]:
    """Return a chart of final loss against depth for each learning rate; no chart if all models have the same depth."""
    depths = {one.name: findings.spec.arms[one.name].protocol.model.num_layers for one in findings.compared}
    if len(set(depths.values())) < 2:
        return []
    charts: list[Chart] = []
    for index, multiple in enumerate(findings.spec.comparison.multiples):
        data: list[dict[str, Any]] = []
        for place, line in enumerate(findings.spec.lines):
            cells = [one for one in _at(findings, multiple) if one.place.line == line and math.isfinite(one.loss.mean)]
            cells.sort(key=lambda one: depths[one.name])
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": escape(line),
                    "x": [depths[cell.name] for cell in cells],
                    "y": [cell.loss.mean for cell in cells],
                    "error_y": {"type": "data", "array": [_half(cell) for cell in cells], "thickness": 1},
                    "line": {"color": COLOURS[place % len(COLOURS)]},
                    "hovertemplate": "%{x} layers: %{y:.3f} nats<extra>%{fullData.name}</extra>",
                }
            )
        ticks = sorted(set(depths.values()))
        layout = chart_layout("blocks", "final held-out loss (nats)", 420)
        layout["xaxis"] |= {"type": "log", "tickvals": ticks, "ticktext": [str(tick) for tick in ticks]}
        title = f"at {multiple:g}x the LR"
        caption = (
            "Mean over seeds. Bars are 95 % intervals over seeds. The arms share their seeds; a difference can "
            "therefore be clear although the bars overlap."
        )
        charts.append(Chart(f"by-size-{index}", title, caption, data, layout))
    return charts


def differences(findings: LossFindings) -> Chart:
    """Return the chart of the difference of every arm to the reference, with a trace for each learning rate."""
    data: list[dict[str, Any]] = []
    for index, multiple in enumerate(findings.spec.comparison.multiples):
        shown = [(one.name, one.difference) for one in _at(findings, multiple) if one.difference is not None]
        half = [0.0 if math.isnan(difference.low) else difference.high - difference.mean for _, difference in shown]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": f"at {multiple:g}x the LR",
                "x": [difference.mean for _, difference in shown],
                "y": [escape(name) for name, _ in shown],
                "error_x": {"type": "data", "array": half},
                "marker": {"size": 10, "color": COLOURS[index % len(COLOURS)]},
                "hovertemplate": "%{y}: %{x:+.3f} nats<extra></extra>",
            }
        )
    names = [one.name for one in findings.compared if one.difference is not None]
    layout = chart_layout("difference in final loss (nats)", "", 140 + 30 * len(set(names)))
    layout["yaxis"] = category_axis([escape(name) for name in dict.fromkeys(names)])
    layout["shapes"] = [vertical_line(0)]
    caption = "Left of the dotted line, the loss is lower than that of the reference. Bars: 95 % intervals."
    return Chart("differences", "Differences", caption, data, layout)


def curves(findings: LossFindings, *, compute: bool) -> list[Chart]:
    """Return a chart of held-out loss for each size, against tokens or FLOPs, at the first of the learning rates."""
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
        charts.append(Chart(slug, size or "all arms", "Mean over seeds.", data, layout))
    return charts


def _at(findings: LossFindings, multiple: float) -> list[Compared]:
    return [one for one in findings.compared if one.multiple == multiple]


def _half(one: Compared) -> float:
    return 0.0 if math.isnan(one.loss.high) else one.loss.high - one.loss.mean
