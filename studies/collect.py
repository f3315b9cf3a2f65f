"""Keep what a finished study rests on: ``python studies/collect.py STUDY_FOLDER studies/NAME``.

Writes ``study.toml``, ``environment.json`` and ``outcomes.jsonl``: one line a run with its outcome and, where it has
them, its final losses by block of text; and the arrays that a kind of study needs besides, such as the traces of a
study of signals, and ``seeds.npz`` where an arm has five seeds. From these ``trimtab report studies/NAME`` makes
results and page.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from trimtab.run.folder import load_texts, record_of
from trimtab.study.kind import kind_of
from trimtab.study.seed_facts import save_facts
from trimtab.study.seed_groups import FACTS
from trimtab.study.stored import UNFINISHED, load_stored


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("target", type=Path)
    options = parser.parse_args()
    findings = load_stored(options.folder).findings()
    options.target.mkdir(parents=True, exist_ok=True)
    shutil.copy(options.folder / "study.toml", options.target)
    first = next(run for run in findings.runs if run.outcome is not None)
    shutil.copy(options.folder / "runs" / first.run_id / "environment.json", options.target)
    with (options.target / "outcomes.jsonl").open("w", encoding="utf-8") as file:
        for run in findings.runs:
            trial, outcome = run.trial, run.outcome
            row = {"arm": trial.arm, "lr": trial.learning_rate, "seed": trial.seed, "round": trial.round}
            if trial.data_seed is not None:
                row["data_seed"] = trial.data_seed
            if trial.repeat:
                row["repeat"] = trial.repeat
            if outcome is None:
                continue
            row |= record_of(outcome)
            texts = load_texts(options.folder / "runs" / run.run_id)
            if texts:
                row["texts"] = {name: [round(loss, 6) for loss in losses] for name, losses in texts.items()}
            file.write(json.dumps(row, allow_nan=False) + "\n")
    evidence = findings.evidence
    (options.target / UNFINISHED).unlink(missing_ok=True)
    if not evidence.complete:
        (options.target / UNFINISHED).write_text(json.dumps({"pending": evidence.pending}) + "\n", encoding="utf-8")
    kind_of(findings.spec).keep(findings, options.target)
    groups = kind_of(findings.spec).seed_groups(findings)
    if groups:
        save_facts({run.run_id: run.facts for group in groups for run in group.runs}, options.target / FACTS)


if __name__ == "__main__":
    main()
