"""Tables and charts of the movers of an arm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from trimtab.kinds.max_lr.growth import Growth
from trimtab.kinds.max_lr.movers import FACTOR, Movement, drawn
from trimtab.kinds.max_lr.series import FOLLOWED
from trimtab.report.chart import escape, vertical_line
from trimtab.report.text import number as number_text
from trimtab.section import Chart, Section, Table

SOUND, FAILING = ("#9ecae1", "#08519c"), ("#fdd0a2", "#a63603")  # first layer, last layer
ROWS = 16
CONFOUNDED = "Part of every difference is due to the learning rate, not to the failure."
MOVED = ("quantity", "place", "left the band at step", "steps before the loss", "last value / median of sound runs")
COMPARED = (
    *("quantity", "place", "failing / sound", "more than doubled?", "p (ratio 2, Holm)"),
    *("growth, failing", "growth, sound", "difference", "higher rate / sound"),
)
GROWN = (
    "Failing / sound: ratio of the geometric means at the last step that all runs have, in the layer where it is "
    "largest, with a 95 % interval. Growth: change per 100 steps after warm-up, in octaves (+1 doubles the value)."
)


def refusal(arms: Sequence[str]) -> Section:
    """Return the section that names the arms without a rate at which some runs fail and others do not."""
    return Section(
        "Who moved first",
        lines=[
            f"no comparison for {', '.join(arms)}: no learning rate has both failing and sound runs, and runs of "
            "different learning rates differ without any failure; set movers.seeds to train runs at the limit, or "
            "movers.other_rates = true to compare different learning rates"
        ],
    )


def mover_sections(number: int, arm: str, movement: Movement) -> list[Section]:
    """Return the sections of an arm: the growth of each quantity, and the order in which quantities left the band."""
    _, failing = drawn(movement)
    event = movement.event_step
    ended = (
        f"its training loss rises for good at step {event}" if event is not None else "its loss does not rise for good"
    )
    rate = f"LR {failing.trial.learning_rate:.3g}"
    lead = (
        f"{len(movement.failing)} runs that fail at the edge of {movement.edge} and {len(movement.sound)} that do not"
        + (f", all at {rate}. " if movement.same_rate else f", at different learning rates. {CONFOUNDED} ")
    )
    growth = [_growth_row(movement, one) for one in movement.growth]
    charts = mover_charts(number, movement)
    moved = [mover for mover in movement.movers if mover.step is not None]
    rows = [
        (
            FOLLOWED[mover.quantity],
            mover.place,
            str(mover.step),
            "-" if event is None or mover.step is None else str(event - mover.step),
            "-" if mover.ratio is None else f"{mover.ratio:.3g}x",
        )
        for mover in moved[:ROWS]
    ]
    stayed = len(movement.movers) - len(moved)
    rows.append((f"{stayed} of {len(movement.movers)} quantities never left the band", "", "", "", ""))
    band = (
        f"{lead}The failing run of seed {failing.trial.seed} at {rate} ({failing.label.value}; {ended}). The band of a "
        f"quantity extends from {1 / FACTOR:g} times the smallest to {FACTOR:g} times the largest value of the sound "
        "runs at the same step. A quantity leaves the band when three consecutive readings, or all remaining readings, "
        "are outside it."
    )
    sections = [Section(f"Who moved first: {arm}", band, Table(MOVED, rows), charts=charts, small=True)]
    if growth:
        sections.insert(
            0, Section(f"Growth of each quantity: {arm}", lead + GROWN + _above_note(movement), Table(COMPARED, growth))
        )
    return sections


def _above_note(movement: Movement) -> str:
    if movement.above is None:
        return ""
    runs, _ = movement.above
    return (
        f" Last column: {len(runs)} runs at LR {runs[0].trial.learning_rate:.3g} against the sound runs. {CONFOUNDED}"
    )


def _growth_row(movement: Movement, growth: Growth) -> tuple[str, ...]:
    above = {one.quantity: one for one in movement.above[1]} if movement.above else {}
    return (
        *(FOLLOWED[growth.quantity], growth.place, _ratio(growth), growth.doubled, number_text(growth.p_double, ".2g")),
        *(number_text(growth.slope, "+.3f"), number_text(growth.slope_sound, "+.3f")),
        _interval(growth.difference, growth.difference_low, growth.difference_high, "+.3f"),
        _ratio(above[growth.quantity]) if growth.quantity in above else "-",
    )


def _ratio(growth: Growth) -> str:
    interval = "" if growth.low is None or growth.high is None else f" [{growth.low:.2g}, {growth.high:.2g}]"
    return f"{growth.ratio:.2g}x{interval}"


def _interval(value: float | None, low: float | None, high: float | None, form: str) -> str:
    if value is None:
        return "-"
    return f"{value:{form}}" if low is None or high is None else f"{value:{form}} [{low:{form}}, {high:{form}}]"


def mover_charts(number: int, movement: Movement) -> list[Chart]:
    """Return a chart for each quantity, with a line for each layer: sound run in blue, failing run in orange."""
    sound, failing = drawn(movement)
    charts: list[Chart] = []
    for index, (quantity, title) in enumerate(FOLLOWED.items()):
        data: list[dict[str, Any]] = []
        for run, colours, name in ((sound, SOUND, "sound"), (failing, FAILING, "failing")):
            series = movement.series[run.run_id]
            places = series.values.get(quantity, {})
            for layer, (where, values) in enumerate(places.items()):
                place = escape(where).replace("%", "&#37;")  # a place may be the name of a module
                points = zip(series.steps.tolist(), values.tolist(), strict=True)
                finite = [(step, value) for step, value in points if math.isfinite(value)]
                share = layer / (len(places) - 1) if len(places) > 1 else 1.0
                data.append(
                    {
                        "type": "scatter",
                        "mode": "lines",
                        "name": f"{name}, {place}",
                        "x": [step for step, _ in finite],
                        "y": [value for _, value in finite],
                        "line": {"width": 1.5, "color": _between(*colours, share)},
                        "hovertemplate": "step %{x}: %{y:.4g}<extra>" + f"{name}, {place}</extra>",
                    }
                )
        if data:
            positive = all(value > 0 for trace in data for value in trace["y"])
            charts.append(Chart(f"movers-{number}-{index}", title, "", data, _layout(movement, log=positive)))
    return charts


def _layout(movement: Movement, *, log: bool) -> dict[str, Any]:
    layout: dict[str, Any] = {
        "height": 280,
        "margin": {"l": 60, "r": 20, "t": 10, "b": 45},
        "showlegend": False,
        "xaxis": {"title": {"text": "step"}},
        "yaxis": {"type": "log", "exponentformat": "power"} if log else {},
    }
    if movement.event_step is not None:
        layout["shapes"] = [vertical_line(movement.event_step)]
    return layout


def _between(first: str, last: str, share: float) -> str:
    pairs = [(int(first[i : i + 2], 16), int(last[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)
