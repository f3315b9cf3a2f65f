"""Spikes per 1,000 steps of the runs of ``losses``: ``python spikes.py STUDY_FOLDER`` writes ``spikes.csv`` here.

A spike is a step after the 200th, outside the planted blocks, with a training loss more than 0.3 nats above the median
of the 201 steps before it, planted steps left out. The last columns are shares of all steps, in percent: at least 10
standard deviations from the mean of the 1,000 steps before (arXiv 2502.11034), and at least 7 (arXiv 2501.00656).
"""

from __future__ import annotations

import csv
import json
import statistics
import sys
import tomllib
from pathlib import Path

from trimtab.stats.spike_score import spike_share

MARGIN, WINDOW, FIRST = 0.3, 201, 200


def spikes_of(losses: list[float], planted: set[int]) -> float:
    """Spikes per 1,000 steps that can be one; ``losses`` begin with step 1."""
    calm: list[float] = []
    spikes = counted = 0
    for step, loss in enumerate(losses, start=1):
        if step in planted:
            continue
        if step > FIRST:
            counted += 1
            spikes += not loss <= statistics.median(calm[-WINDOW:]) + MARGIN
        calm.append(loss)
    return 1000 * spikes / counted


def main(folder: Path) -> None:
    rows: list[dict[str, object]] = []
    index = json.loads((folder / "index.json").read_text())
    for trial in index["trials"]:
        _, arm, _, seed, _, name = trial
        run = folder / "runs" / name
        spec = tomllib.loads((run / "spec.toml").read_text())
        losses = [float(json.loads(line)["loss"]) for line in (run / "steps.jsonl").read_text().splitlines()[1:]]
        planted = set(spec["batches"]["shuffled_steps"])
        rows.append(
            {
                "arm": arm,
                "learning_rate": spec["learning_rate"],
                "seed": seed,
                "final_loss": json.loads((run / "outcome.json").read_text())["final_loss"],
                "spikes": round(spikes_of(losses, planted), 3),
                "ten_deviations": round(spike_share(losses, 10), 4),
                "seven_deviations": round(spike_share(losses, 7), 4),
            }
        )
    with (Path(__file__).with_name("spikes.csv")).open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
