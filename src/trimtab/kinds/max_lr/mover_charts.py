"""Table and small multiples of who moved first."""

from __future__ import annotations

import math
from typing import Any

from trimtab.kinds.max_lr.movers import FACTOR, FOLLOWED, Growth, Movement
from trimtab.report.chart import escape, vertical_line
from trimtab.section import Chart, Section, Table

STABLE, BROKEN = ("#9ecae1", "#08519c"), ("#fdd0a2", "#a63603")  # first layer, last layer
ROWS = 16
MOVED = ("quantity", "place", "left the band at step", "before the loss, steps", "at the end, over stable")
COMPARED = ("quantity", "ratio", "pairs", "more than double?")
GROWN = (
    "Failing over stable run of the same seed at their last common reading, largest of the layers; geometric "
    "mean over the "
    "pairs, 95 % interval in brackets."
)
DOUBLE = 2.0


def mover_sections(number: int, arm: str, movement: Movement) -> list[Section]:
    """What moved first, and whether each quantity more than doubled, with small multiples of all of them."""
    stable = movement.stable.trial
    broken = movement.broken.trial
    event = movement.event_step
    ended = (
        f"its training loss leaves for good at step {event}"
        if event is not None
        else "its training loss never rose for good"
    )
    lead = (
        f"A failing run at LR {broken.learning_rate:.3g} (seed {broken.seed}, {movement.broken.label.value}; {ended}) "
        f"against {movement.num_stable} stable runs, the nearest at LR {stable.learning_rate:.3g}. A quantity "
        f"leaves when three readings in a row, or the last ones, lie "
        f"outside {1 / FACTOR:g} to {FACTOR:g} times the stable runs' range."
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
    rows.append((f"{stayed} of {len(movement.movers)} quantities never left", "", "", "", ""))
    growth = [_growth(one) for one in movement.growth]
    charts = mover_charts(number, movement)
    sections = [
        Section(f"Who moved first: {arm}", lead, Table(MOVED, rows), charts=[] if growth else charts, small=True)
    ]
    if growth:
        sections.append(
            Section(f"How far each moved: {arm}", GROWN, Table(COMPARED, growth), charts=charts, small=True)
        )
    return sections


def _growth(one: Growth) -> tuple[str, ...]:
    interval = "" if one.low is None or one.high is None else f" [{one.low:.2g}, {one.high:.2g}]"
    if one.low is not None and one.low > DOUBLE:
        verdict = "yes"
    elif (one.high if one.high is not None else one.ratio) < DOUBLE:
        verdict = "no"
    else:
        verdict = "not clear"
    return FOLLOWED[one.quantity], f"{one.ratio:.2g}x{interval}", str(one.pairs), verdict


def mover_charts(number: int, movement: Movement) -> list[Chart]:
    """One chart a quantity, one line a layer, of the stable run in blue and of the failing one in orange."""
    charts: list[Chart] = []
    for index, (quantity, title) in enumerate(FOLLOWED.items()):
        data: list[dict[str, Any]] = []
        for run, colours, name in (
            (movement.stable, STABLE, "stable"),
            (movement.broken, BROKEN, "failing"),
        ):
            places = movement.series[run.run_id].get(quantity, {})
            for layer, (where, values) in enumerate(places.items()):
                place = escape(where).replace("%", "&#37;")  # a place may be a module's name
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
