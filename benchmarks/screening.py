"""Can one run with a rising learning rate say where an arm breaks? Its answer against the limits of a committed study.

The LR of a screening run rises evenly in octaves from 2^-9 to 2^3. Its answer is the LR at which the held-out loss has
risen by ``RISE`` nats above its lowest value. The table shows by how many octaves this differs from LR50 of the study,
which has fresh runs of the whole length at each LR; the standard deviation of the difference is that of a prior that
is learned from other arms.

    python benchmarks/screening.py [--steps 400] [--seeds 2]
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from trimtab.data.batches import held_out_batch
from trimtab.loop import Evaluation, train
from trimtab.loss import held_out_loss
from trimtab.run.build import build, build_optimizer, start_rules
from trimtab.run.execute import EVALUATION_BATCH, training_batches
from trimtab.study.study import load_study
from trimtab.study.trial import SIXTEENTH

STUDY = Path(__file__).parents[1] / "studies" / "2026-11-22_paper-table"
LOW, HIGH = -9.0, 3.0
EVALUATIONS = 48
RISE = {"quality": 0.2, "collapse": 0.5}


def screen(arm: str, steps: int, seed: int) -> list[tuple[float, float]]:
    """Train one run with a rising LR; returns log2 LR and held-out loss."""
    torch.set_num_threads(1)
    spec = load_study(STUDY).spec
    run = spec.arms[arm].run(round(HIGH * SIXTEENTH), seed)
    run = replace(run, protocol=replace(run.protocol, training=replace(run.protocol.training, steps=steps)))
    protocol, device = run.protocol, torch.device("cpu")
    data = protocol.data.load()
    model = build(run, device)
    held_out = held_out_batch(
        data.held_out, num_sequences=protocol.evaluation.num_sequences, context=protocol.model.context
    )
    optimizer = build_optimizer(model, run)
    curve: list[tuple[float, float]] = []
    for record in train(
        model,
        training_batches(protocol, data, seed, device),
        optimizer,
        lambda step: 2.0 ** (LOW - HIGH + (HIGH - LOW) * step / (steps - 1)),
        start_rules(model, optimizer, run),
        evaluation=Evaluation(
            loss=lambda: held_out_loss(model, held_out, EVALUATION_BATCH),
            after={round(i * steps / EVALUATIONS) for i in range(1, EVALUATIONS + 1)},
        ),
    ):
        if not math.isfinite(float(record.loss)):
            break
        if record.held_out_loss is not None:
            curve.append((HIGH + math.log2(record.multiplier), float(record.held_out_loss)))
    return curve


def risen(curve: Sequence[tuple[float, float]], rise: float) -> float:
    """Log2 LR from which the loss has risen above its lowest value; the end of the run if it never does."""
    lowest = min(range(len(curve)), key=lambda i: curve[i][1])
    return next((x for x, loss in curve[lowest:] if loss > curve[lowest][1] + rise), curve[-1][0])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    arms = json.loads((STUDY / "results.json").read_text())["arms"]
    cells = [(arm, seed) for arm in arms for seed in range(given.seeds)]
    with ProcessPoolExecutor(given.workers) as pool:
        curves = list(pool.map(partial(_screen, given.steps), cells))
    off: dict[str, list[float]] = {edge: [] for edge in RISE}
    print("| arm | seed | edge | screened, log2 LR | LR50 of the study, log2 | difference |")
    print("|---|---|---|---|---|---|")
    for (arm, seed), curve in zip(cells, curves, strict=True):
        for edge, rise in RISE.items():
            known = arms[arm]["criteria"]["d" if edge == "quality" else "collapse"]["breaks"]["lr50"]
            if known["bound"] is not None:
                continue
            found, truth = risen(curve, rise), math.log2(known["estimate"])
            off[edge].append(truth - found)
            print(f"| {arm} | {seed} | {edge} | {found:.2f} | {truth:.2f} | {truth - found:+.2f} |")
    for edge, differences in off.items():
        mean, sd = np.mean(differences), np.std(differences, ddof=1)
        print(f"\n{edge}: {len(differences)} runs, mean difference {mean:+.2f} octaves, standard deviation {sd:.2f}")


def _screen(steps: int, cell: tuple[str, int]) -> list[tuple[float, float]]:
    return screen(cell[0], steps, cell[1])


if __name__ == "__main__":
    main()
