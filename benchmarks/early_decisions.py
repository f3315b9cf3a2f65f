"""Can a half-finished run be judged? Error rate and saving of early decisions, learned on recorded curves.

Every run of the committed studies has its held-out loss at 20 moments. At a share of the run, a logistic rule predicts
from the curve so far whether the final loss will be above the line of quality, or that of collapse. A decision is taken
where the predicted chance of an error is at most ``--error``. Each study is judged by the rule that the other studies
taught, never by its own curves. The lines are those that the finished study has; a live search knows them only after
its sweep, so the saving of the sweep's runs is an upper bound.

    python benchmarks/early_decisions.py [--error 0.005 0.02 0.05]
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trimtab.run.files import decode_number
from trimtab.stats.intervals import wilson
from trimtab.study.labels import collapse_line
from trimtab.study.settings import Criterion
from trimtab.study.trial import SIXTEENTH, Tick

STUDIES = Path(__file__).parents[1] / "studies"
SHARES = (0.25, 0.375, 0.5, 0.625, 0.75, 0.85)
CRITERION = Criterion()
PENALTY = 1.0
Floats = NDArray[np.float64]


@dataclass
class Curve:
    """A recorded run at its arm's best LR or above it.

    Attributes:
        octaves: distance from the best LR.
        losses: held-out loss at each of its shares of the run.
        lines: the lines of quality and of collapse.
        learned: distance from the unigram entropy to the best loss of the arm.
        probe: whether the search placed the run at an edge.
    """

    study: str
    octaves: float
    losses: Sequence[tuple[float, float]]
    final: float
    lines: Mapping[str, float]
    learned: float
    probe: bool

    @property
    def own(self) -> str:
        """The edge that the run is nearer to."""
        return min(self.lines, key=lambda edge: abs(self.final - self.lines[edge]))

    def features(self, share: float, edge: str) -> list[float] | None:
        """What is known at a share of the run; None if the run ended before."""
        seen = [loss for at, loss in self.losses if at <= share]
        earlier = [loss for at, loss in self.losses if at <= share * 2 / 3]
        if self.losses[-1][0] < share:
            return None
        high = self.lines[edge] + 1.5 * self.learned
        now, before = (min(float(np.median(part[-2:])), high) for part in (seen, earlier))
        above = (now - self.lines[edge]) / self.learned
        falling = float(np.clip((before - now) / self.learned, -1, 1))
        bends = [max(above, 0.0), max(above - 0.3, 0.0), max(-above - 0.1, 0.0)]
        return [above, falling, above * falling, min(self.octaves, 6) / 6, *bends]


def curves_of(folder: Path, seen: set[str]) -> list[Curve]:
    """The runs of a committed study, of arms with three learning rates or more.

    ``seen`` are the run ids of earlier studies, and grows: a run that two studies share would teach its own judge.
    """
    rows = [json.loads(line) for line in (folder / "outcomes.jsonl").read_text().splitlines() if line]
    rows = [row for row in rows if row["run_id"] not in seen]
    seen |= {row["run_id"] for row in rows}
    by_arm: dict[str, list[Mapping[str, object]]] = defaultdict(list)
    for row in rows:
        if row.get("held_out"):
            by_arm[row["arm"]].append(row)
    return [curve for rows_of_arm in by_arm.values() for curve in _curves_of_arm(folder.name, rows_of_arm)]


def _curves_of_arm(study: str, rows: Sequence[Mapping[str, object]]) -> list[Curve]:
    finals: dict[int, list[float]] = defaultdict(list)
    for row in rows:
        finals[Tick.nearest(float(str(row["lr"])))].append(_number(row["final_loss"]))
    means = {tick: float(np.mean(losses)) for tick, losses in finals.items() if np.isfinite(losses).all()}
    if len(means) < 3:
        return []
    at = min(means, key=lambda tick: means[tick])
    entropy = float(str(rows[0]["unigram_entropy"]))
    best = means[at]
    collapse = collapse_line(entropy, best, CRITERION)
    lines = {"quality": min(best + CRITERION.margin, collapse), "collapse": collapse}
    steps = max(int(row["held_out"][-1][0]) for row in rows)  # type: ignore[index]
    return [
        Curve(
            study,
            (Tick.nearest(float(str(row["lr"]))) - at) / SIXTEENTH,
            [(step / steps, _number(loss)) for step, loss in row["held_out"]],  # type: ignore[union-attr]
            _number(row["final_loss"]),
            lines,
            entropy - best,
            int(str(row.get("round", 0))) >= 2,
        )
        for row in rows
        if Tick.nearest(float(str(row["lr"]))) >= at
    ]


def _number(value: object) -> float:
    number = float(decode_number(value))  # type: ignore[arg-type]
    return number if math.isfinite(number) else 1e3


def learn(features: Floats, above: Floats) -> tuple[Floats, Floats, Floats]:
    """Ridge logistic regression; returns weights, means and scales."""
    means, scales = features.mean(0), features.std(0) + 1e-9
    design = np.column_stack([np.ones(len(features)), (features - means) / scales])
    weights = np.zeros(design.shape[1])
    ridge = PENALTY * np.eye(len(weights))
    ridge[0, 0] = 0
    for _ in range(60):
        chance = 1 / (1 + np.exp(-np.clip(design @ weights, -30, 30)))
        hessian = (design * (chance * (1 - chance) + 1e-9)[:, None]).T @ design + ridge
        weights -= np.linalg.solve(hessian, design.T @ (chance - above) + ridge @ weights)
    return weights, means, scales


def predict(rule: tuple[Floats, Floats, Floats], features: Floats) -> Floats:
    """Chance that the final loss is above the line."""
    weights, means, scales = rule
    design = np.column_stack([np.ones(len(features)), (features - means) / scales])
    return 1 / (1 + np.exp(-np.clip(design @ weights, -30, 30)))


@dataclass
class Decisions:
    """Decisions on the runs of one group.

    Attributes:
        at: share of the run at which each run was decided; 1 if never.
    """

    at: list[float] = field(default_factory=list[float])
    wrong: int = 0

    @property
    def decided(self) -> int:
        return sum(share < 1 for share in self.at)


def decide(curves: Sequence[Curve], error: float, edge_of: Mapping[int, str]) -> dict[int, tuple[float, bool]]:
    """The first decision on every run, and whether it was wrong, by the place of the run."""
    done: dict[int, tuple[float, bool]] = {}
    for share in SHARES:
        for edge in ("quality", "collapse"):
            known = [(i, found) for i, c in enumerate(curves) if (found := c.features(share, edge)) is not None]
            places = np.array([i for i, _ in known])
            features = np.array([found for _, found in known])
            above = np.array([float(curves[i].final > curves[i].lines[edge]) for i in places])
            studies = np.array([curves[i].study for i in places])
            for study in sorted(set(studies)):
                others, own = studies != study, studies == study
                chance = predict(learn(features[others], above[others]), features[own])
                for place, p, truth in zip(places[own], chance, above[own], strict=True):
                    if edge_of[int(place)] == edge and min(p, 1 - p) < error and int(place) not in done:
                        done[int(place)] = (share, (p > 0.5) != bool(truth))
    return done


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--error", type=float, nargs="*", default=[0.005, 0.02, 0.05])
    given = parser.parse_args()
    seen: set[str] = set()
    curves = [curve for file in sorted(STUDIES.glob("*/outcomes.jsonl")) for curve in curves_of(file.parent, seen)]
    own = {i: curve.own for i, curve in enumerate(curves)}
    print(f"{len(curves)} runs of {len({curve.study for curve in curves})} studies\n")
    print("| allowed error | runs | edge | number | decided | steps made | wrong decisions | 95 % interval |")
    print("|---|---|---|---|---|---|---|---|")
    for error in given.error:
        done = decide(curves, error, own)
        for edge in ("quality", "collapse"):
            for probe in (True, False):
                group = [i for i, curve in enumerate(curves) if own[i] == edge and curve.probe == probe]
                found = Decisions([done[i][0] if i in done else 1.0 for i in group])
                found.wrong = sum(done[i][1] for i in group if i in done)
                low, high = wilson(found.wrong, found.decided)
                print(
                    f"| {error:g} | {'probes' if probe else 'all others'} | {edge} | {len(group)} | "
                    f"{found.decided / len(group):.2f} | {np.mean(found.at):.2f} | {found.wrong} of {found.decided} | "
                    f"{low:.3f} to {high:.3f} |"
                )


if __name__ == "__main__":
    main()
