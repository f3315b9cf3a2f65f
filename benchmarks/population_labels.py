"""Do labels of runs in a stack differ from those of single runs more often than repeats of single runs do?

``python benchmarks/population_labels.py``: 200 runs of a small model, 20 learning rates about both limits with 10
seeds each, as stacks of 20, alone, and alone again with other rounding (two threads). A label tells at which edges a
run fails.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from trimtab.run.carry_out import carry_out_together
from trimtab.run.execute import execute
from trimtab.run.folder import Outcome
from trimtab.run.reading import read_run
from trimtab.run.spec import RunSpec

RATES = [2.0 ** (-6 + index * 0.35) for index in range(20)]
SEEDS = range(10)
MARGIN = 0.2


def run_of(rate: float, seed: int, *, threads: int = 1, population: bool = False) -> RunSpec:
    return read_run(
        {
            "learning_rate": rate,
            "seeds": {"init": seed, "data": seed, "other": seed},
            "model": {"width": 32, "num_heads": 2, "num_layers": 2, "context": 32, "positions": "rotary"},
            "training": {"steps": 150, "batch_size": 8, "threads": threads, "population": population},
            "schedule": {"warmup_steps": 15},
            "evaluation": {"num_sequences": 32, "evaluations": 10},
        },
        "benchmark",
    )


def labels(outcomes: Sequence[Outcome], best: float) -> list[tuple[bool, bool]]:
    """For each run whether it loses quality, and whether it collapses."""
    found: list[tuple[bool, bool]] = []
    for outcome in outcomes:
        finite = math.isfinite(outcome.final_loss)
        collapsed = not finite or outcome.final_loss > outcome.unigram_entropy
        found.append((not finite or outcome.final_loss > best + MARGIN, collapsed))
    return found


def wilson(count: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share."""
    z, share = 1.96, count / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return middle - half, middle + half


def timed(title: str, action: Callable[[], list[Outcome]]) -> list[Outcome]:
    begun = time.perf_counter()
    outcomes = action()
    print(f"{title}: {time.perf_counter() - begun:.0f} s", flush=True)
    return outcomes


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        runs = Path(place)
        grid = [(rate, seed) for seed in SEEDS for rate in RATES]
        alone = timed("alone", lambda: [execute(run_of(*cell), runs / "alone") for cell in grid])
        together = timed(
            "stacks of 20",
            lambda: [
                outcome
                for seed in SEEDS
                for outcome in carry_out_together(
                    [run_of(rate, seed, population=True) for rate in RATES], [""] * len(RATES), runs / "together"
                )
            ],
        )
        again = timed(
            "alone, two threads", lambda: [execute(run_of(*cell, threads=2), runs / "again") for cell in grid]
        )
    best = min(outcome.final_loss for outcome in alone if math.isfinite(outcome.final_loss))
    expected = labels(alone, best)
    print(f"runs that lose quality: {sum(q for q, _ in expected)}, that collapse: {sum(c for _, c in expected)}")
    for title, outcomes in (("stack", together), ("repeat", again)):
        differ = sum(one != other for one, other in zip(labels(outcomes, best), expected, strict=True))
        low, high = wilson(differ, len(grid))
        print(f"{title}: {differ} of {len(grid)} labels differ from those of single runs, {low:.3f} to {high:.3f}")


if __name__ == "__main__":
    main()
