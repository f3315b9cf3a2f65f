"""A page as a list of sections, each a table, some sentences and charts; and the same on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from trimtab.config import dump_toml, printable
from trimtab.report.figures import Figure
from trimtab.report.html import environment_of, page_template, resource, specification_of
from trimtab.report.tables import ResultTable


@dataclass(frozen=True, slots=True)
class Section:
    """One part of the page.

    Attributes:
        note: what the table and the charts mean, in a sentence or two.
        lines: conclusions; those that begin with "warning" are shown as such.
        on_terminal: whether table and lines are printed as well.
    """

    title: str
    note: str = ""
    table: ResultTable | None = None
    lines: Sequence[str] = ()
    charts: Sequence[Figure] = ()
    on_terminal: bool = False


def page_of_sections(
    title: str, lead: str, sections: Sequence[Section], spec: Mapping[str, Any], folder: Path, run_ids: Sequence[str]
) -> str:
    """The page as text: one HTML file that asks for nothing."""
    return page_template("sections.html.j2").render(
        title=title,
        lead=lead,
        sections=sections,
        chart_data={chart.slug: specification_of(chart) for section in sections for chart in section.charts},
        specification=dump_toml(spec),
        environment=environment_of(folder, run_ids),
        plotly=resource("vendor/plotly-basic.min.js"),
        draw=resource("templates/draw.js"),
        style=resource("templates/style.css"),
    )


def print_sections(sections: Sequence[Section], console: Console) -> None:
    """What of the page belongs on a terminal; names are shown as plain text."""
    for section in sections:
        if not section.on_terminal:
            continue
        if section.table is not None:
            table = Table(title=Text(printable(section.title)))
            for index, column in enumerate(section.table.columns):
                table.add_column(Text(printable(column)), justify="left" if index == 0 else "right")
            for row in section.table.rows:
                table.add_row(*(Text(printable(cell)) for cell in row))
            console.print(table)
        for line in section.lines:
            console.print(Text(printable(line)))
