"""The page of a report: a single HTML file that holds all data and code and makes no request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trimtab.config import dump_toml
from trimtab.report.html import environment_of, page_template, resource, specification_of
from trimtab.section import Section


def render(
    title: str, lead: str, sections: Sequence[Section], spec: Mapping[str, Any], folder: Path, run_ids: Sequence[str]
) -> str:
    """Return the page as text.

    Raises:
        ValueError: if two charts have the same slug.
    """
    charts = [chart for section in sections for chart in section.charts]
    slugs = {chart.slug for chart in charts}
    if len(slugs) < len(charts):
        raise ValueError(f"two charts of the page have the same slug, among {sorted(slugs)}")
    return page_template("page.html.j2").render(
        title=title,
        lead=lead,
        sections=sections,
        chart_data={chart.slug: specification_of(chart) for chart in charts},
        specification=dump_toml(spec),
        environment=environment_of(folder, run_ids),
        plotly=resource("vendor/plotly-basic.min.js"),
        draw=resource("templates/draw.js"),
        style=resource("templates/style.css"),
    )
