"""The report: one HTML file that asks for nothing, with all data, charts and code inside."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, select_autoescape

from trimtab.config import dump_toml
from trimtab.report.figures import Figure, figures
from trimtab.report.mover_charts import mover_charts, mover_table
from trimtab.report.movers import Movement
from trimtab.report.tables import conclusions, limit, ratio, result_table
from trimtab.study.analysis import CRITERIA, Findings

TITLES = {"half_d": "d / 2", "d": "d", "double_d": "2 d", "strict": "strict"}


def page_of(findings: Findings, results: dict[str, Any], moved: Mapping[str, Movement]) -> str:
    """The page as text."""
    charts = figures(findings)
    moves = {arm: mover_charts(index, movement) for index, (arm, movement) in enumerate(moved.items())}
    environment = Environment(
        autoescape=select_autoescape(default=True), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(resource("templates/page.html.j2"))
    return template.render(
        results=results,
        table=result_table(results),
        conclusions=conclusions(results),
        criteria=_criteria_table(results),
        main_charts=[chart for chart in charts if not chart.slug.startswith("curves-")],
        curve_charts=[chart for chart in charts if chart.slug.startswith("curves-")],
        mover_charts=moves,
        mover_tables={arm: mover_table(movement) for arm, movement in moved.items()},
        chart_data={c.slug: specification_of(c) for c in (*charts, *(c for some in moves.values() for c in some))},
        label_counts=_label_counts(results),
        specification=dump_toml(findings.spec.table()),
        environment=environment_of(findings.folder, [run.run_id for run in findings.runs]),
        plotly=resource("vendor/plotly-basic.min.js"),
        draw=resource("templates/draw.js"),
        style=resource("templates/style.css"),
    )


def _criteria_table(results: dict[str, Any]) -> list[dict[str, Any]]:
    margin = results["study"]["criterion"]["margin"]
    return [
        {
            "title": TITLES[name] if name == "strict" else f"{TITLES[name]} = {margin * CRITERIA[name]:g} nats",
            "rows": [
                (
                    arm,
                    limit(found["criteria"][name]["breaks"]["lr50"]),
                    limit(found["criteria"][name]["usable"]["lr50"]),
                    ratio(found["criteria"][name]["ratio"]["lr50"]),
                )
                for arm, found in results["arms"].items()
            ],
        }
        for name in CRITERIA
    ]


def _label_counts(results: dict[str, Any]) -> tuple[list[str], list[tuple[str, list[int]]]]:
    labels = list(next(iter(results["arms"].values()))["counts"])
    return labels, [(name, list(arm["counts"].values())) for name, arm in results["arms"].items()]


def specification_of(chart: Figure) -> str:
    """A chart as the text of its script element."""
    return script_safe({"data": list(chart.data), "layout": chart.layout})


def script_safe(chart: dict[str, Any]) -> str:
    """JSON that cannot close the script element it stands in."""
    text = json.dumps(chart, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def environment_of(folder: Path, run_ids: Sequence[str]) -> str:
    """What the first run that says so ran on; also beside a study whose runs are gone."""
    beside_runs = (folder / "runs" / run_id / "environment.json" for run_id in run_ids)
    for file in (*beside_runs, folder / "environment.json"):
        if file.is_file():
            return file.read_text(encoding="utf-8")
    return "not recorded"


def resource(name: str) -> str:
    """A file that comes with the report, as text."""
    return (files("trimtab") / "report" / name).read_text(encoding="utf-8")
