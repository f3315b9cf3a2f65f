"""What a study found, for people and for programs: page, terminal, JSON, CSV. It knows no kind of study by name."""

from __future__ import annotations

from trimtab.report.report import Report, print_findings, report_of, write_report

__all__ = ["Report", "print_findings", "report_of", "write_report"]
