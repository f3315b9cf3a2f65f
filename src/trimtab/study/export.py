"""Export a study to a small folder for a repository. Reports are made from it, and other machines go on from it."""

from __future__ import annotations

from pathlib import Path

from trimtab.config import ConfigError
from trimtab.run.files import write_json, write_whole
from trimtab.run.folder import load_environment
from trimtab.run.kept import Kept
from trimtab.study.index import INDEX, STUDY
from trimtab.study.kind import Findings, kind_of
from trimtab.study.outcomes import Made, write_outcomes
from trimtab.study.seed_facts import FACTS, find_facts, save_facts
from trimtab.study.stored import load_stored

ENVIRONMENT = "environment.json"


def export(folder: Path, target: Path) -> Findings:
    """Write the specification, outcomes and arrays of a study, finished or not, and return its findings.

    The folder gets ``study.toml``, ``environment.json`` of the first run, ``outcomes.jsonl``, and the arrays that the
    kind of study reads besides, such as ``movers.npz``. ``seeds.npz`` holds the facts of the runs of an arm with five
    seeds; while a study is unfinished, those of all runs.

    Args:
        folder: the study folder, with its run folders.
        target: the folder to write; made if missing. An earlier export of the same study is replaced.

    Raises:
        ConfigError: if the folder holds no run folders or no finished run, or ``target`` is a study folder.
        IntegrityError: if a stored file is damaged.
    """
    if not (folder / "runs").is_dir():
        raise ConfigError(f"{folder}: holds no run folders, so there is nothing to export")
    if (target / INDEX).exists() or (target / "runs").exists():
        raise ConfigError(f"{target}: is a study folder; export to another folder")
    findings = load_stored(folder).findings()
    evidence = findings.evidence
    made = [run for run in findings.runs if run.outcome is not None]
    if not made:
        raise ConfigError(f"{folder}: no run is finished yet, so there is nothing to export")
    target.mkdir(parents=True, exist_ok=True)
    write_whole(target / STUDY, (folder / STUDY).read_text(encoding="utf-8"))
    write_json(target / ENVIRONMENT, load_environment(folder / "runs" / made[0].run_id))
    kind_of(findings.spec).keep(findings, target)
    _keep_facts(findings, target)
    rows = [Made(run.trial, run.outcome, evidence.blocks(run.run_id)) for run in made if run.outcome is not None]
    write_outcomes(target, rows, None if evidence.complete else evidence.pending)
    return findings


def _keep_facts(findings: Findings, target: Path) -> None:
    if findings.evidence.complete:
        groups = kind_of(findings.spec).seed_groups(findings)
        facts = {run.run_id: run.facts for group in groups for run in group.runs}
    else:
        kept = Kept(findings.evidence.folder, FACTS)
        names = {run.run_id for run in findings.runs if run.outcome is not None}
        facts = {name: find_facts(kept, name) for name in sorted(names)}
    if facts:
        save_facts(facts, target / FACTS)
