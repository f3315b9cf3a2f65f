"""Several studies in one table and on one page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trimtab.report.html import page_template, resource
from trimtab.report.output import plain
from trimtab.report.text import duration
from trimtab.section import Section, Table
from trimtab.study.status import StudyStatus


def overview(studies: Sequence[StudyStatus]) -> Section:
    """Return a table with a row for each study."""
    columns = ["study", "folder", "kind", "state", "finished", "running", "waiting", "no outcome", "left, at most"]
    rows = [
        [
            study.name,
            study.folder,
            study.kind,
            study.state,
            f"{study.finished} of at most {study.most_runs}",
            str(study.running),
            str(study.waiting),
            str(study.given_up),
            duration(study.most_seconds_left),
        ]
        for study in studies
    ]
    return Section("Studies", table=Table(columns, rows), on_terminal=True)


def comparison(studies: Sequence[StudyStatus]) -> Section:
    """Return a table with a row for each arm and quantity, and a column for each study."""
    cells: dict[tuple[str, str], dict[int, str]] = {}
    for index, study in enumerate(studies):
        for standing in study.standings:
            cells.setdefault((standing.quantity, standing.arm), {})[index] = standing.text
    rows = [
        [quantity, arm, *(texts.get(index, "") for index in range(len(studies)))]
        for (quantity, arm), texts in cells.items()
    ]
    note = (
        "Brackets are 95 % intervals. An arm of the same name may differ between studies: read study.toml of each "
        "before comparing. Limits of studies with other data, models or numbers of steps are different quantities."
    )
    return Section("Answers", note, Table(["quantity", "arm", *_titles(studies)], rows), on_terminal=True)


def studies_json(studies: Sequence[StudyStatus]) -> dict[str, Any]:
    """Return all states as plain values."""
    return {"schema": 1, "studies": [plain(study) for study in studies]}


def studies_page(studies: Sequence[StudyStatus]) -> str:
    """Return a page with both tables; a single HTML file that makes no request."""
    return page_template("studies.html.j2").render(
        title="Studies",
        lead=f"{len(studies)} studies.",
        sections=[overview(studies), comparison(studies)],
        style=resource("templates/style.css"),
    )


def _titles(studies: Sequence[StudyStatus]) -> list[str]:
    """Return the names of the studies, with the folder where two have the same name."""
    names = [study.name for study in studies]
    return [f"{study.name} ({study.folder})" if names.count(study.name) > 1 else study.name for study in studies]
