"""What a study found, for people and for programs: table, page, JSON, CSV. Reads run folders, never trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
from trimtab.study.analysis import Findings
from trimtab.study.kinds import AnyFindings
from trimtab.study.loss_at_lr.analysis import LossFindings
from trimtab.study.max_lr_by_size.analysis import SizedFindings
from trimtab.study.seeds.analysis import SeedFindings
from trimtab.study.seeds.view import SeedGroup, seed_groups
from trimtab.study.signals.analysis import SignalFindings

__all__ = ["groups_of", "print_findings", "write_report"]


@dataclass(frozen=True, slots=True)
class Reporter:
    """How the findings of one kind become a page of sections.

    Attributes:
        results: the content of ``results.json``.
        rows: the text of ``results.csv``.
        lead: the sentence under the title.
        sections: of the page, and of the terminal.
        adds_seeds: whether the view of seeds comes after them; of a study of seeds they are that view.
    """

    results: Callable[[Any], dict[str, Any]]
    rows: Callable[[Any], str]
    lead: Callable[[Any], str]
    sections: Callable[[Any], Sequence[Section]]
    adds_seeds: bool = True


def write_report(findings: AnyFindings, folder: Path | None = None) -> dict[str, Any]:
    """Write ``results.json``, ``results.csv`` and ``report.html`` beside the runs; returns the JSON content."""
    target = folder or findings.folder
    groups = groups_of(findings)
    seeds = groups_results(groups)
    if isinstance(findings, Findings):  # limits have a page of their own
        moved = movements(findings)
        results = results_of(findings, moved, seeds)
        view = view_sections(groups, on_terminal=False)
        rows, page = csv_of(results), page_of(findings, results, moved, view)
    else:
        reporter = REPORTERS[type(findings)]
        results, rows = reporter.results(findings) | {"seeds": seeds}, reporter.rows(findings)
        view = view_sections(groups, on_terminal=False) if reporter.adds_seeds else []
        sections = [*reporter.sections(findings), *view]
        ids = [run.run_id for run in findings.runs]
        spec = findings.spec
        page = page_of_sections(spec.name, reporter.lead(findings), sections, spec.table(), findings.folder, ids)
    write_whole(target / "results.json", dump(results))
    write_whole(target / "results.csv", rows)
    write_whole(target / "report.html", page)
    return results


def print_findings(findings: AnyFindings, console: Console) -> None:
    """The main table and what it says, on a terminal."""
    if isinstance(findings, Findings):
        print_table(results_of(findings, {}), console)
    else:
        print_sections(REPORTERS[type(findings)].sections(findings), console)


def groups_of(findings: AnyFindings) -> Sequence[SeedGroup]:
    """The view of seeds, of a study of any kind."""
    if isinstance(findings, SeedFindings):
        return findings.groups
    results = {run.trial: run.outcome for run in findings.runs}
    return seed_groups(results, {run.trial: run.run_id for run in findings.runs}, findings.folder)


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


REPORTERS: Mapping[type[Any], Reporter] = {
    LossFindings: Reporter(loss_results, loss_csv, _loss_lead, loss_sections),
    SizedFindings: Reporter(sized_results, sized_csv, _sized_lead, sized_sections),
    SignalFindings: Reporter(signals_results, signals_csv, _signals_lead, signals_sections),
    SeedFindings: Reporter(seeds_results, seeds_csv, _seeds_lead, seeds_sections, adds_seeds=False),
}
