"""What a study found, for people and for programs: table, page, JSON, CSV. Reads run folders, never trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from trimtab.report.limits_by_size import sized_csv, sized_results, sized_sections
from trimtab.report.losses import loss_csv, loss_results, loss_sections
from trimtab.report.movers import movements
from trimtab.report.page import page_of
from trimtab.report.results import csv_of, dump, results_of
from trimtab.report.sections import page_of_sections, print_sections
from trimtab.report.tables import print_table
from trimtab.run.folder import write_whole
from trimtab.study.kinds import AnyFindings
from trimtab.study.loss_at_lr.analysis import LossFindings
from trimtab.study.max_lr_by_size.analysis import SizedFindings

__all__ = ["print_findings", "write_report"]


def write_report(findings: AnyFindings, folder: Path | None = None) -> dict[str, Any]:
    """Write ``results.json``, ``results.csv`` and ``report.html`` beside the runs; returns the JSON content."""
    target = folder or findings.folder
    if isinstance(findings, LossFindings):
        results, rows, page = loss_results(findings), loss_csv(findings), _loss_page(findings)
    elif isinstance(findings, SizedFindings):
        results, rows, page = sized_results(findings), sized_csv(findings), _sized_page(findings)
    else:
        moved = movements(findings)
        results = results_of(findings, moved)
        rows, page = csv_of(results), page_of(findings, results, moved)
    write_whole(target / "results.json", dump(results))
    write_whole(target / "results.csv", rows)
    write_whole(target / "report.html", page)
    return results


def print_findings(findings: AnyFindings, console: Console) -> None:
    """The main table and what it says, on a terminal."""
    if isinstance(findings, LossFindings):
        print_sections(loss_sections(findings), console)
    elif isinstance(findings, SizedFindings):
        print_sections(sized_sections(findings), console)
    else:
        print_table(results_of(findings, {}), console)


def _loss_page(findings: LossFindings) -> str:
    spec = findings.spec
    lead = (
        f"Which arm ends at the lowest loss, and how sure is that? {len(findings.runs)} runs, {len(spec.arms)} arms, "
        f"{spec.comparison.seeds} paired seeds, {spec.protocol.training.steps} steps each, reference {spec.reference}."
    )
    ids = [run.run_id for run in findings.runs]
    return page_of_sections(spec.name, lead, loss_sections(findings), spec.table(), findings.folder, ids)


def _sized_page(findings: SizedFindings) -> str:
    spec = findings.spec
    lead = (
        f"How does the learning-rate limit move with size? {len(findings.runs)} runs, {len(spec.lines)} arms at "
        f"{len(spec.sizes)} sizes, {spec.protocol.training.steps} steps each, reference {spec.plain.reference}."
    )
    ids = [run.run_id for run in findings.runs]
    return page_of_sections(spec.name, lead, sized_sections(findings), spec.table(), findings.folder, ids)
