"""The content of the report of a study of seeds."""

from __future__ import annotations

from trimtab.kinds.seeds.analysis import SeedFindings
from trimtab.report.seed_sections import verdicts, view_sections
from trimtab.section import Content, NoFacts, Rows
from trimtab.study.seed_facts import SPIKES


def content(findings: SeedFindings) -> Content:
    """Return the content of the report."""
    spec = findings.spec
    return Content(
        lead=f"How much does a run depend on its seed? {len(findings.runs)} runs, {len(spec.arms)} arms, "
        f"{spec.seeds.init} seeds of the initial weights times {spec.seeds.data} seeds of the order of the data, "
        f"{spec.protocol.training.steps} steps each.",
        sections=view_sections(findings.groups, findings.warnings),
        verdicts=verdicts(findings.groups),
        facts=NoFacts(),
        results=NoFacts(),
        rows=_rows(findings),
    )


def _rows(findings: SeedFindings) -> Rows:
    """Return one row per run."""
    columns = ("arm", "learning_rate", "init", "data", "final_loss", "score", "outlier", "fork_step", *SPIKES)
    rows: list[list[object]] = []
    for group in findings.groups:
        for run in group.runs:
            data = run.trial.seed if run.trial.data_seed is None else run.trial.data_seed
            cells = [group.arm, group.learning_rate, run.trial.seed, data, run.loss, run.score]
            rows.append([*cells, run.is_outlier, run.fork_step, *run.facts.spikes])
    return Rows(columns, rows)
