"""What a study found, for people and for programs: table, page, JSON, CSV. Reads run folders, never trains."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from trimtab.report.limits_by_size import sized_csv, sized_results, sized_sections
from trimtab.report.losses import loss_csv, loss_results, loss_sections
from trimtab.report.movers import movements
from trimtab.report.page import page_of
from trimtab.report.results import csv_of, dump, results_of
from trimtab.report.sections import Section, page_of_sections, print_sections
from trimtab.report.seeds import groups_results, seeds_csv, seeds_results, seeds_sections, view_sections
from trimtab.report.signals import signals_csv, signals_results, signals_sections
from trimtab.report.tables import print_table
from trimtab.run.folder import write_whole
from trimtab.study.kinds import AnyFindings
from trimtab.study.loss_at_lr.analysis import LossFindings
from trimtab.study.max_lr_by_size.analysis import SizedFindings
from trimtab.study.seeds.analysis import SeedFindings
from trimtab.study.seeds.view import SeedGroup, seed_groups
from trimtab.study.signals.analysis import SignalFindings

__all__ = ["groups_of", "print_findings", "write_report"]


def write_report(findings: AnyFindings, folder: Path | None = None) -> dict[str, Any]:
    """Write ``results.json``, ``results.csv`` and ``report.html`` beside the runs; returns the JSON content."""
    target = folder or findings.folder
    groups = groups_of(findings)
    seeds, further = groups_results(groups), view_sections(groups, on_terminal=False)
    if isinstance(findings, LossFindings):
        results, rows = loss_results(findings) | {"seeds": seeds}, loss_csv(findings)
        page = _page(findings, _loss_lead(findings), [*loss_sections(findings), *further])
    elif isinstance(findings, SizedFindings):
        results, rows = sized_results(findings) | {"seeds": seeds}, sized_csv(findings)
        page = _page(findings, _sized_lead(findings), [*sized_sections(findings), *further])
    elif isinstance(findings, SignalFindings):
        results, rows = signals_results(findings) | {"seeds": seeds}, signals_csv(findings)
        page = _page(findings, _signals_lead(findings), [*signals_sections(findings), *further])
    elif isinstance(findings, SeedFindings):
        results, rows = seeds_results(findings), seeds_csv(findings)
        page = _page(findings, _seeds_lead(findings), seeds_sections(findings))
    else:
        moved = movements(findings)
        results = results_of(findings, moved, seeds)
        rows, page = csv_of(results), page_of(findings, results, moved, further)
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
    elif isinstance(findings, SignalFindings):
        print_sections(signals_sections(findings), console)
    elif isinstance(findings, SeedFindings):
        print_sections(seeds_sections(findings), console)
    else:
        print_table(results_of(findings, {}), console)


def groups_of(findings: AnyFindings) -> Sequence[SeedGroup]:
    """The view of seeds, of a study of any kind."""
    if isinstance(findings, SeedFindings):
        return findings.groups
    results = {run.trial: run.outcome for run in findings.runs}
    return seed_groups(results, {run.trial: run.run_id for run in findings.runs}, findings.folder)


def _page(findings: AnyFindings, lead: str, sections: Sequence[Section]) -> str:
    ids = [run.run_id for run in findings.runs]
    return page_of_sections(findings.spec.name, lead, sections, findings.spec.table(), findings.folder, ids)


def _loss_lead(findings: LossFindings) -> str:
    spec = findings.spec
    return (
        f"Which arm ends at the lowest loss, and how sure is that? {len(findings.runs)} runs, {len(spec.arms)} arms, "
        f"{spec.comparison.seeds} paired seeds, {spec.protocol.training.steps} steps each, reference {spec.reference}."
    )


def _sized_lead(findings: SizedFindings) -> str:
    spec = findings.spec
    return (
        f"How does the learning-rate limit move with size? {len(findings.runs)} runs, {len(spec.lines)} arms at "
        f"{len(spec.sizes)} sizes, {spec.protocol.training.steps} steps each, reference {spec.plain.reference}."
    )


def _signals_lead(findings: SignalFindings) -> str:
    spec = findings.spec
    return (
        "Does token embedding variability (TEV) stand in for gradient variance, and does it tell early how a run ends? "
        f"{len(findings.runs)} runs, {len(spec.arms)} arms, {len(spec.ticks())} learning rates, {spec.signals.seeds} "
        f"seeds, {spec.protocol.training.steps} steps each."
    )


def _seeds_lead(findings: SeedFindings) -> str:
    spec = findings.spec
    return (
        f"How much of a run is its seed? {len(findings.runs)} runs, {len(spec.arms)} arms, {spec.seeds.init} seeds of "
        f"the initial weights by {spec.seeds.data} of the order of the data, {spec.protocol.training.steps} steps each."
    )
