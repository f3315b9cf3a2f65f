"""The parts of a report, as plain data: sections with tables, sentences and charts, and the rows of a CSV file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

Finite = Annotated[float, "finite"]
"""A number that is always finite; any other float of ``results.json`` is null if it is not finite."""


@dataclass(frozen=True, slots=True)
class Table:
    """Column titles and rows of text."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart, as a plotly specification.

    Attributes:
        slug: unique on the page.
        caption: how to read the chart, in a sentence or two.
        data: traces; every name in them must be escaped, since plotly reads text as markup.
    """

    slug: str
    title: str
    caption: str
    data: Sequence[dict[str, Any]]
    layout: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Section:
    """A section of the report.

    Attributes:
        note: what the table and the charts mean, in a sentence or two.
        lines: conclusions; a line that begins with "warning" is shown as a warning.
        on_terminal: whether table and lines are also printed on a terminal.
        small: whether the charts are small and stand side by side.
    """

    title: str
    note: str = ""
    table: Table | None = None
    lines: Sequence[str] = ()
    charts: Sequence[Chart] = ()
    on_terminal: bool = False
    small: bool = False


@dataclass(frozen=True, slots=True)
class Rows:
    """The content of a CSV file; names are not escaped."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]


@dataclass(frozen=True, slots=True)
class Content:
    """The part of a report that a kind of study provides; ``trimtab.report`` adds the parts that all kinds share.

    Attributes:
        lead: the sentence under the title.
        sections: of the page and the terminal, in order.
        verdicts: the conclusions in sentences.
        facts: a dataclass; its fields are merged into ``study`` of ``results.json``.
        results: a dataclass; its fields are merged into the top level of ``results.json``.
        rows: of ``results.csv``.
        warnings: warnings in addition to those of the findings.
    """

    lead: str
    sections: Sequence[Section]
    verdicts: Sequence[str]
    facts: object
    results: object
    rows: Rows
    warnings: Sequence[str] = field(default=())


@dataclass(frozen=True, slots=True)
class NoFacts:
    """The facts or results of a kind that adds none."""


def columns_of(rows: Sequence[Mapping[str, str]]) -> Table:
    """Return a table from rows that map column titles to text."""
    columns = list(rows[0]) if rows else []
    return Table(columns, [[row.get(column, "") for column in columns] for row in rows])
