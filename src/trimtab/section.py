"""What a report is made of, as plain data: sections with tables, sentences and charts; rows for a spreadsheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

Finite = Annotated[float, "finite"]
"""A number of ``results.json`` that is never null, as another float is where it is not finite."""


@dataclass(frozen=True, slots=True)
class Table:
    """Column titles and rows of text."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart, as a plotly specification.

    Attributes:
        slug: unique on the page.
        caption: how to read the chart, in a sentence or two.
        data: traces; names in them are escaped, as plotly's text is a small markup language.
    """

    slug: str
    title: str
    caption: str
    data: Sequence[dict[str, Any]]
    layout: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Section:
    """One part of the page.

    Attributes:
        note: what the table and the charts mean, in a sentence or two.
        lines: conclusions; those that begin with "warning" are shown as such.
        on_terminal: whether table and lines are printed as well.
        small: whether its charts are small multiples, side by side.
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
    """The content of a CSV file; numbers as numbers, names as they are."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]


@dataclass(frozen=True, slots=True)
class Content:
    """What one kind of study has to say of its findings; ``trimtab.report`` adds what all kinds share.

    Attributes:
        lead: the sentence under the title.
        sections: of the page and the terminal, in order.
        verdicts: the conclusions in sentences.
        facts: a dataclass, laid into ``study`` of ``results.json``.
        results: a dataclass, laid into the top level of ``results.json``.
        rows: of ``results.csv``.
        warnings: further ones, that the analysis itself does not give.
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
    """For a kind that adds nothing to ``study``."""


def columns_of(rows: Sequence[Mapping[str, str]]) -> Table:
    """A table from rows by column title."""
    columns = list(rows[0]) if rows else []
    return Table(columns, [[row.get(column, "") for column in columns] for row in rows])
