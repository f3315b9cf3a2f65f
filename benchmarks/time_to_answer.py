"""``demo`` against the same question asked with nanoGPT's loop on 17 half-octave learning rates x 3 seeds per method.

Needs a checkout of nanoGPT and a finished demo: ``python benchmarks/time_to_answer.py PATH --demo DIR --seconds S``,
S being the wall time that the demo's study took here. nanoGPT's time is its measured step time at the demo's shape
(its forward without rotary positions or methods, so if anything too short) x steps x runs over two processes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from nanogpt import nanogpt_step

from trimtab import GPTConfig
from trimtab.stats.posterior import EdgeEvidence, EdgeModel
from trimtab.study.edge import propose

LEVELS = np.arange(-6, 2.01, 0.5)
SEEDS = 3
STUDIES = 300


def rmse(width: float, *, design: str, sweep: list[float], runs: int) -> float:
    rng = np.random.default_rng(0)
    model = EdgeModel(-6, 2)
    errors: list[float] = []
    for _ in range(STUDIES):
        edge = rng.uniform(-4, 0)

        def failed(x: float, edge: float = edge) -> bool:
            return bool(rng.random() < 1 / (1 + np.exp(-(x - edge) / width)))

        if design == "grid":
            pairs = [(float(x), failed(float(x))) for x in LEVELS for _ in range(SEEDS)]
        else:
            pairs = [(x, failed(x)) for x in sweep]
            while len(pairs) < runs:
                posterior = model.fit({"arm": EdgeEvidence.of(pairs)})["arm"]
                pairs += [(tick / 16, failed(tick / 16)) for tick in propose(posterior, min(2, runs - len(pairs)))]
        found = float(model.fit({"arm": EdgeEvidence.of(pairs)})["arm"].quantiles([0.5])[0])
        errors.append((found - edge) ** 2)
    return float(np.sqrt(np.mean(errors)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path")
    parser.add_argument("--demo", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    options = parser.parse_args()
    results = json.loads((options.demo / "results.json").read_text())
    spec = results["study"]["spec"]
    config = GPTConfig(**{**spec["model"], "positions": "learned", "tied": True})
    torch.set_num_threads(1)
    batch = torch.randint(0, config.vocab_size, (spec["training"]["batch_size"], config.context + 1))
    step = nanogpt_step(options.path, config, batch)
    times: list[float] = []
    for _ in range(120):
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    per_step = statistics.median(times[20:])
    arms, steps = len(results["arms"]), results["study"]["steps"]
    runs = len(LEVELS) * SEEDS * arms
    theirs = per_step * steps * runs / 2
    ours = len(results["runs"])
    per_arm = round(ours / arms)
    sweep = sorted({float(np.log2(run["lr"])) for run in results["runs"] if run["round"] == 0})
    print(
        f"nanoGPT: {per_step * 1e3:.1f} ms a step x {steps} x {runs} runs / 2 processes = {theirs:.0f} s, no evaluation"
    )
    print(f"demo: {ours} runs in {options.seconds:.0f} s on 2 workers, held-out evaluations and report included")
    print(f"ratio: {theirs / options.seconds:.1f}x")
    for width in (0.1, 0.35):
        grid = rmse(width, design="grid", sweep=sweep, runs=51)
        adaptive = rmse(width, design="adaptive", sweep=sweep, runs=per_arm)
        print(
            f"RMSE of LR50 in simulation, edge width {width}: grid of 51 runs {grid:.2f}, demo's {per_arm} runs "
            f"{adaptive:.2f} octave"
        )


if __name__ == "__main__":
    main()
