"""Redo the analysis of a committed study from its raw outcomes: ``python studies/reanalyse.py studies/FOLDER``.

Reads ``study.toml`` and ``outcomes.jsonl`` and writes results.json, results.csv and report.html beside them. Trains
nothing, so it also shows what another margin would say: ``--set criterion.margin=0.1 --out ELSEWHERE``.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

from rich.console import Console

from trimtab.config import apply_settings, load_toml
from trimtab.report import write_report
from trimtab.report.tables import print_table
from trimtab.run.folder import Outcome, decode_number
from trimtab.study.analysis import analyse
from trimtab.study.arms import SIXTEENTH
from trimtab.study.search import Trial
from trimtab.study.spec import read_study


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    file = options.folder / "study.toml"
    spec = read_study(apply_settings(load_toml(file), options.settings), str(file))
    results: dict[Trial, Outcome | None] = {}
    names: dict[Trial, str] = {}
    for line in (options.folder / "outcomes.jsonl").read_text().splitlines():
        row = json.loads(line)
        trial = Trial(row["round"], row["arm"], round(math.log2(row["lr"]) * SIXTEENTH), row["seed"])
        facts = {name: decode_number(row[name]) for name in Outcome.__slots__}
        curve = tuple((step, decode_number(loss)) for step, loss in row["held_out"])
        results[trial] = Outcome(**{**facts, "held_out": curve})
        names[trial] = row["run_id"]
    target = options.out or options.folder
    target.mkdir(parents=True, exist_ok=True)
    content = write_report(analyse(spec, results, names, options.folder, {}), target)
    print_table(content, Console(width=150, highlight=False))


if __name__ == "__main__":
    main()
