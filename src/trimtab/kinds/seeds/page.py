"""The page of a study of seeds: the view of seeds of each arm."""

from __future__ import annotations

from trimtab.kinds.seeds.analysis import SeedFindings
from trimtab.report.seed_sections import verdicts, view_sections
from trimtab.section import Content, NoFacts, Rows
from trimtab.study.seed_facts import SPIKES


def content(findings: SeedFindings) -> Content:
    """Everything that is shown of a study of seeds."""
    spec = findings.spec
    return Content(
        lead=f"How much of a run is its seed? {len(findings.runs)} runs, {len(spec.arms)} arms, "
        f"{spec.seeds.init} seeds of "
        f"the initial weights by {spec.seeds.data} of the order of the data, {spec.protocol.training.steps} "
        "steps each.",
        sections=view_sections(findings.groups, findings.warnings),
        verdicts=verdicts(findings.groups),
        facts=NoFacts(),
        results=NoFacts(),
        rows=_rows(findings),
    )


def _rows(findings: SeedFindings) -> Rows:
    """One row a run."""
    columns = ("arm", "learning_rate", "init", "data", "final_loss", "score", "outlier", "fork_step", *SPIKES)
    rows: list[list[object]] = []
    for group in findings.groups:
        for run in group.runs:
            data = run.trial.seed if run.trial.data_seed is None else run.trial.data_seed
            cells = [group.arm, group.learning_rate, run.trial.seed, data, run.loss, run.score]
            rows.append([*cells, run.is_outlier, run.fork_step, *run.facts.spikes])
    return Rows(columns, rows)
