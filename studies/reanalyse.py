"""Redo the analysis of a committed study from its raw outcomes: ``python studies/reanalyse.py studies/FOLDER``.

Reads ``study.toml``, ``outcomes.jsonl`` and, where they are, ``traces.npz`` and ``seeds.npz``, and writes results.json,
results.csv and report.html beside them. Trains nothing, so it also shows what another margin would say:
``--set criterion.margin=0.1 --out ELSEWHERE``.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

from rich.console import Console

from trimtab.config import apply_settings, load_toml
from trimtab.report import print_findings, write_report
from trimtab.run.folder import Outcome, decode_number
from trimtab.study.arms import SIXTEENTH
from trimtab.study.kinds import KINDS, read_any_study
from trimtab.study.loss_at_lr.analysis import ComparedRun, assess
from trimtab.study.loss_at_lr.spec import LossStudySpec
from trimtab.study.search import Trial


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    file = options.folder / "study.toml"
    spec = read_any_study(apply_settings(load_toml(file), options.settings), str(file))
    results: dict[Trial, Outcome | None] = {}
    names: dict[Trial, str] = {}
    texts: dict[Trial, dict[str, list[float]]] = {}
    for line in (options.folder / "outcomes.jsonl").read_text().splitlines():
        row = json.loads(line)
        trial = Trial(
            row["round"], row["arm"], round(math.log2(row["lr"]) * SIXTEENTH), row["seed"], row.get("data_seed")
        )
        facts = {name: decode_number(row[name]) for name in Outcome.__slots__}
        curve = tuple((step, decode_number(loss)) for step, loss in row["held_out"])
        results[trial] = Outcome(**{**facts, "held_out": curve})
        names[trial] = row["run_id"]
        texts[trial] = row.get("texts", {})
    target = options.out or options.folder
    target.mkdir(parents=True, exist_ok=True)
    if isinstance(spec, LossStudySpec):
        runs = [ComparedRun(trial, names[trial], results[trial], texts[trial]) for trial in results]
        findings = assess(spec, runs, options.folder, {})
    else:
        findings = KINDS[spec.kind].analyse(spec, results, names, options.folder, {})
    write_report(findings, target)
    print_findings(findings, Console(width=150, highlight=False))


if __name__ == "__main__":
    main()
