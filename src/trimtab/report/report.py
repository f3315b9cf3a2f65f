"""The report of a study of any kind: the content from the kind, and the parts that all reports share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from trimtab.report.output import csv_text, json_text, plain
from trimtab.report.page import render
from trimtab.report.results import Excluded, StudyHeading, provenance_of, spec_hash
from trimtab.report.seed_results import SeedGroupResults, group_results
from trimtab.report.seed_sections import view_sections
from trimtab.report.terminal import print_sections
from trimtab.run.files import write_whole
from trimtab.section import Content, Section, Table
from trimtab.study.kind import Evidence, Findings, kind_of
from trimtab.study.seed_groups import SeedGroup

SCHEMA = 2


@dataclass(frozen=True, slots=True)
class Report:
    """The content of a report.

    Attributes:
        sections: sections of the page; some are also printed on the terminal.
        results: the content of ``results.json``.
        csv: the text of ``results.csv``.
    """

    title: str
    lead: str
    sections: Sequence[Section]
    results: dict[str, Any]
    csv: str


def report_of(findings: Findings) -> Report:
    """Return the report of a study of any kind."""
    kind = kind_of(findings.spec)
    content = kind.content(findings)
    groups = kind.seed_groups(findings)
    after = view_sections(groups, on_terminal=False) if kind.adds_seeds else []
    evidence = findings.evidence
    return Report(
        title=findings.spec.name,
        lead=content.lead,
        sections=[
            *_state(evidence),
            *content.sections,
            *after,
            _cost(findings),
            _excluded(evidence),
            _versions(evidence),
        ],
        results=_results(findings, content, groups),
        csv=csv_text(content.rows),
    )


def write_report(findings: Findings, folder: Path | None = None) -> dict[str, Any]:
    """Write ``results.json``, ``results.csv`` and ``report.html``; return the content of ``results.json``.

    Args:
        findings: findings of a study of any kind.
        folder: the folder to write to; the study folder if None. It is created if it does not exist.
    """
    target = folder or findings.evidence.folder
    target.mkdir(parents=True, exist_ok=True)
    report = report_of(findings)
    ids = [run.run_id for run in findings.runs]
    spec = findings.spec.table()
    write_whole(target / "results.json", json_text(report.results))
    write_whole(target / "results.csv", report.csv)
    page = render(report.title, report.lead, report.sections, spec, findings.evidence.folder, ids)
    write_whole(target / "report.html", page)
    return report.results


def print_findings(findings: Findings, console: Console) -> None:
    """Print the main tables and the conclusions on a terminal."""
    content = kind_of(findings.spec).content(findings)
    print_sections(findings.spec.name, [*_state(findings.evidence), *content.sections, _cost(findings)], console)


def _results(findings: Findings, content: Content, groups: Sequence[SeedGroup]) -> dict[str, Any]:
    spec = findings.spec
    evidence = findings.evidence
    table = spec.table()
    heading = StudyHeading(
        name=spec.name,
        spec_hash=spec_hash(table),
        steps=spec.protocol.training.steps,
        threads=spec.protocol.training.threads,
        complete=evidence.complete,
        pending=evidence.pending,
        notes=list(evidence.notes),
        warnings=[*findings.warnings, *content.warnings],
        verdicts=list(content.verdicts),
        spec=table,
    )
    seeds: list[SeedGroupResults] = [group_results(group) for group in groups]
    excluded = [Excluded(run_id, reason) for run_id, reason in sorted(evidence.errors.items())]
    outcomes = [run.outcome for run in findings.runs]
    return {
        "schema": SCHEMA,
        "kind": spec.kind,
        "study": plain(heading) | plain(content.facts),
        **plain(content.results),
        "excluded": plain(excluded),
        "seeds": plain(seeds),
        "provenance": plain(provenance_of(outcomes, evidence.versions)),
    }


def _state(evidence: Evidence) -> list[Section]:
    """Return warnings about the study as a whole: unfinished, or made from runs of different origin."""
    lines = [f"warning: {note}" for note in evidence.notes]
    if not evidence.complete:
        lines.append(
            f"warning: this study is unfinished: {len(evidence.results)} runs are made, {evidence.pending} are "
            "pending, and later rounds may add more; 'trimtab study' resumes it"
        )
    if len(evidence.versions) > 1:
        lines.append(
            f"warning: the runs were made with {len(evidence.versions)} different sets of versions; the table at the "
            "end of the page lists them"
        )
    return [Section("State of the study", lines=lines, on_terminal=True)] if lines else []


def _cost(findings: Findings) -> Section:
    """Return what the study cost: runs, and the time of training; a run on two threads counts twice."""
    by_id = {run.run_id: run for run in findings.runs}  # two trials may share a run
    seconds = [
        run.outcome.seconds * findings.spec.run_of(run.trial).protocol.training.threads
        for run in by_id.values()
        if run.outcome is not None
    ]
    if not seconds:
        return Section("Cost", lines=["cost: no run has an outcome"], on_terminal=True)
    total = sum(seconds)
    line = f"cost: {len(seconds)} runs, {total / 60:.1f} core-minutes of training, {total / len(seconds):.1f} s a run"
    return Section("Cost", lines=[line], on_terminal=True)


def _excluded(evidence: Evidence) -> Section:
    lines = [f"{run_id}: {reason}" for run_id, reason in sorted(evidence.errors.items())]
    return Section("Runs without outcome", lines=lines or ["None."])


def _versions(evidence: Evidence) -> Section:
    rows = [[versions, str(number)] for versions, number in sorted(evidence.versions.items())]
    return Section("Versions", table=Table(["versions", "runs"], rows))
