"""Tables and charts of the movers of an arm."""

from __future__ import annotations

import math
from typing import Any

from trimtab.kinds.max_lr.growth import Growth
from trimtab.kinds.max_lr.movers import FACTOR, Movement
from trimtab.kinds.max_lr.series import FOLLOWED
from trimtab.report.chart import escape, vertical_line
from trimtab.section import Chart, Section, Table

STABLE, BROKEN = ("#9ecae1", "#08519c"), ("#fdd0a2", "#a63603")  # first layer, last layer
ROWS = 16
MOVED = ("quantity", "place", "left the band at step", "steps before the loss", "last value / stable median")
COMPARED = ("quantity", "ratio", "pairs", "more than doubled?")
GROWN = (
    "Ratio: value in a failing run over the value in a stable run of the same seed, at the last step that both have, "
    "in the layer with the largest ratio. The table shows the geometric mean over the pairs of runs and its 95 % "
    "interval."
)
DOUBLE = 2.0


def mover_sections(number: int, arm: str, movement: Movement) -> list[Section]:
    """Return the sections of an arm: the order in which quantities left the band, their growth, and their charts."""
    stable = movement.stable.trial
    broken = movement.broken.trial
    event = movement.event_step
    ended = (
        f"its training loss rises for good at step {event}"
        if event is not None
        else "its training loss does not rise for good"
    )
    lead = (
        f"A failing run at LR {broken.learning_rate:.3g} (seed {broken.seed}, {movement.broken.label.value}; {ended}) "
        f"is compared with {movement.num_stable} stable runs; the charts show the stable run at LR "
        f"{stable.learning_rate:.3g}. The band of a quantity extends from {1 / FACTOR:g} times the smallest to "
        f"{FACTOR:g} times the largest value of the stable runs. A quantity leaves the band when three consecutive "
        "readings, or all remaining readings, are outside it."
    )
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
    growth = [_growth_row(growth) for growth in movement.growth]
    charts = mover_charts(number, movement)
    sections = [
        Section(f"Who moved first: {arm}", lead, Table(MOVED, rows), charts=[] if growth else charts, small=True)
    ]
    if growth:
        sections.append(
            Section(f"Growth of each quantity: {arm}", GROWN, Table(COMPARED, growth), charts=charts, small=True)
        )
    return sections


def _growth_row(growth: Growth) -> tuple[str, ...]:
    interval = "" if growth.low is None or growth.high is None else f" [{growth.low:.2g}, {growth.high:.2g}]"
    if growth.low is not None and growth.low > DOUBLE:
        verdict = "yes"
    elif (growth.high if growth.high is not None else growth.ratio) < DOUBLE:
        verdict = "no"
    else:
        verdict = "not clear"
    return FOLLOWED[growth.quantity], f"{growth.ratio:.2g}x{interval}", str(growth.pairs), verdict


def mover_charts(number: int, movement: Movement) -> list[Chart]:
    """Return a chart for each quantity, with a line for each layer: stable run in blue, failing run in orange."""
    charts: list[Chart] = []
    for index, (quantity, title) in enumerate(FOLLOWED.items()):
        data: list[dict[str, Any]] = []
        for run, colours, name in (
            (movement.stable, STABLE, "stable"),
            (movement.broken, BROKEN, "failing"),
        ):
            places = movement.series[run.run_id].get(quantity, {})
            for layer, (where, values) in enumerate(places.items()):
                place = escape(where).replace("%", "&#37;")  # a place may be the name of a module
                sound = [(step, value) for step, value in values if math.isfinite(value)]
                share = layer / (len(places) - 1) if len(places) > 1 else 1.0
                data.append(
                    {
                        "type": "scatter",
                        "mode": "lines",
                        "name": f"{name}, {place}",
                        "x": [step for step, _ in sound],
                        "y": [value for _, value in sound],
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
