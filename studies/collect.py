"""Keep what a finished study rests on: ``python studies/collect.py STUDY_FOLDER studies/NAME``.

Writes ``study.toml``, ``environment.json`` and ``outcomes.jsonl``: one line a run with its outcome and, where it has
them, its final losses by block of text. Of a study of signals also ``traces.npz``, what each run showed over time, and
of one in which an arm has five seeds ``seeds.npz``: predictions, spike scores, weight statistics. From these
``reanalyse.py`` makes results and report.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from trimtab.report import groups_of
from trimtab.run.folder import Outcome, encode_number, load_texts
from trimtab.study import load_study
from trimtab.study.driver import replay
from trimtab.study.seeds.facts import save_facts
from trimtab.study.seeds.view import FACTS
from trimtab.study.signals.analysis import TRACES, SignalFindings
from trimtab.study.signals.traces import save_traces


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("target", type=Path)
    options = parser.parse_args()
    findings = replay(load_study(options.folder).spec, options.folder)
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
            if outcome is None:
                continue
            row |= {name: encode_number(getattr(outcome, name)) for name in Outcome.__slots__}
            row["held_out"] = [[step, encode_number(loss)] for step, loss in outcome.held_out]
            texts = load_texts(options.folder / "runs" / run.run_id)
            if texts:
                row["texts"] = {name: [round(loss, 6) for loss in losses] for name, losses in texts.items()}
            file.write(json.dumps(row, allow_nan=False) + "\n")
    if isinstance(findings, SignalFindings):
        save_traces(
            {run.run_id: run.trace for run in findings.runs if run.outcome is not None}, options.target / TRACES
        )
    groups = groups_of(findings)
    if groups:
        save_facts({run.run_id: run.facts for group in groups for run in group.runs}, options.target / FACTS)


if __name__ == "__main__":
    main()
