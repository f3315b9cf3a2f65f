"""Write the findings of a study as page, terminal output, JSON and CSV, without reference to any kind of study."""

from __future__ import annotations

from trimtab.report.report import Report, print_findings, report_of, write_report

__all__ = ["Report", "print_findings", "report_of", "write_report"]
