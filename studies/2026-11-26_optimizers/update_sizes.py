"""Relative update sizes at the step of the peak LR: ``python update_sizes.py STUDY_FOLDER``.

For each run the median over the hidden matrices (QKV, Proj, FC1, FC2 of every layer) of ||dW|| / ||W|| at step 40, the
peak of the schedule. Writes update_sizes.csv beside this file and prints, for each arm, the size at LR50: a straight
line through log size against log LR, over the runs within an octave of LR50, read at LR50 and at the ends of its
interval.
"""

from __future__ import annotations

import argparse
import csv
import math
import statistics
from pathlib import Path

import numpy as np

from trimtab.kinds.max_lr.findings import LimitFindings
from trimtab.run.folder import load_readings
from trimtab.study.stored import load_stored
from trimtab.watching import MetricKey

PEAK = 40
HIDDEN = ("qkv_weight", "proj_weight", "fc1_weight", "fc2_weight")


def size_of(run: Path) -> float:
    """The median relative update of the hidden matrices at the peak; nan if the run ended before it."""
    row = next((row for row in load_readings(run) if row["step"] == PEAK), {})
    keys = {text: MetricKey.parse(text) for text in row if "/" in text}
    sizes = [float(row[text]) for text, key in keys.items() if key.what in HIDDEN and key.statistic == "update_ratio"]
    return statistics.median(sizes) if sizes else math.nan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    findings = load_stored(folder).findings()
    assert isinstance(findings, LimitFindings)
    rows = [
        (run.trial.arm, run.trial.learning_rate, run.trial.seed, run.label.value, size_of(folder / "runs" / run.run_id))
        for run in findings.runs
    ]
    with Path(__file__).with_name("update_sizes.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["arm", "lr", "seed", "label", "relative_update_at_peak"])
        writer.writerows(rows)
    for name, arm in findings.arms.items():
        limit = arm.criteria["d"].breaks.lr50
        if limit.estimate is None or limit.low is None or limit.high is None:
            print(f"{name}: no limit inside the tested range")
            continue
        near = [
            (math.log2(lr), math.log2(size))
            for arm_name, lr, _, _, size in rows
            if arm_name == name and math.isfinite(size) and abs(math.log2(lr / limit.estimate)) <= 1
        ]
        slope, offset = np.polyfit(*np.array(near).T, 1)
        scatter = float(np.std([y - (slope * x + offset) for x, y in near], ddof=2))
        at = [2 ** (slope * math.log2(lr) + offset) for lr in (limit.low, limit.estimate, limit.high)]
        print(
            f"{name}: LR50 {limit.estimate:.3g} [{limit.low:.2g}, {limit.high:.2g}]: update {at[1]:.3g} of the weight "
            f"[{at[0]:.2g}, {at[2]:.2g}] ({len(near)} runs, scatter {scatter:.2f} octaves, slope {slope:.2f})"
        )


if __name__ == "__main__":
    main()
