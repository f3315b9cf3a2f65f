"""What a study found, for people and for programs: table, page, JSON, CSV. Reads run folders, never trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trimtab.report.movers import movements
from trimtab.report.page import page_of
from trimtab.report.results import csv_of, dump, results_of
from trimtab.run.folder import write_whole
from trimtab.study.analysis import Findings

__all__ = ["write_report"]


def write_report(findings: Findings, folder: Path | None = None) -> dict[str, Any]:
    """Write ``results.json``, ``results.csv`` and ``report.html`` beside the runs; returns the JSON content."""
    target = folder or findings.folder
    moved = movements(findings)
    results = results_of(findings, moved)
    write_whole(target / "results.json", dump(results))
    write_whole(target / "results.csv", csv_of(results))
    write_whole(target / "report.html", page_of(findings, results, moved))
    return results
