"""The report: one HTML file that asks for nothing, with all data, charts and code inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.config import dump_toml
from trimtab.report.figures import figures
from trimtab.report.html import environment_of, page_template, resource, specification_of
from trimtab.report.mover_charts import mover_charts, mover_table
from trimtab.report.movers import Movement
from trimtab.report.sections import Section
from trimtab.report.tables import conclusions, limit, ratio, result_table
from trimtab.study.analysis import CRITERIA, Findings

TITLES = {"half_d": "d / 2", "d": "d", "double_d": "2 d", "strict": "strict"}


def page_of(
    findings: Findings, results: dict[str, Any], moved: Mapping[str, Movement], sections: Sequence[Section] = ()
) -> str:
    """The page as text; ``sections`` come before the criteria."""
    charts = figures(findings)
    moves = {arm: mover_charts(index, movement) for index, (arm, movement) in enumerate(moved.items())}
    further = [chart for section in sections for chart in section.charts]
    return page_template("page.html.j2").render(
        results=results,
        table=result_table(results),
        conclusions=conclusions(results),
        criteria=_criteria_table(results),
        main_charts=[chart for chart in charts if not chart.slug.startswith("curves-")],
        curve_charts=[chart for chart in charts if chart.slug.startswith("curves-")],
        mover_charts=moves,
        mover_tables={arm: mover_table(movement) for arm, movement in moved.items()},
        sections=sections,
        chart_data={
            c.slug: specification_of(c) for c in (*charts, *(c for some in moves.values() for c in some), *further)
        },
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
