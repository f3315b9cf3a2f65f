"""Limit studies on made-up losses: a specification, an outcome of a loss, and a search carried out without training."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trimtab.kinds.max_lr.analysis import analyse
from trimtab.kinds.max_lr.findings import LimitFindings
from trimtab.kinds.max_lr.rounds import rounds
from trimtab.kinds.max_lr.spec import MaxLrSpec
from trimtab.run.folder import Outcome
from trimtab.study.kind import Evidence, read_any_study
from trimtab.study.labels import Yardstick
from trimtab.study.settings import Criterion
from trimtab.study.trial import Trial

LOG_VOCAB, UNIGRAM, BEST = math.log(256), 3.2, 2.0
STEPS = 400
LEARNED = Yardstick(best_loss=BEST, best_tick=-32, reference_loss=BEST)
CRITERION = Criterion()

Loss = Callable[[Trial], "Outcome | None"]
Results = dict[Trial, "Outcome | None"]


def outcome(final: float = BEST, **facts: Any) -> Outcome:
    steps = facts.pop("steps", STEPS)
    curve = facts.pop("held_out", ((0, LOG_VOCAB), (steps // 2, final), (steps, final)))
    given: dict[str, Any] = {
        "run_id": "run",
        "stopped": None,
        "steps": steps,
        "initial_loss": LOG_VOCAB,
        "final_loss": final,
        "norm_ratio": 1.5,
        "spike": 0.0,
        "log_vocab": LOG_VOCAB,
        "unigram_entropy": UNIGRAM,
        "bytes_per_token": 2.0,
        "held_out": curve,
        "seconds": 1.0,
    }
    return Outcome(**(given | facts))


BROKEN = outcome(math.nan, stopped="non_finite", held_out=((0, LOG_VOCAB), (STEPS // 2, math.nan)))


def study(*, arms: Sequence[str] | Mapping[str, Any] = ("baseline", "qk_norm", "soft_cap"), **tables: Any) -> MaxLrSpec:
    """From 2^-6 to 2^2; the sweep keeps to this range unless ``extensions`` is given."""
    tables["search"] = {"extensions": 0} | dict(tables.get("search", {}))
    raw = {
        "learning_rates": {"low": "2^-6", "high": "2^2", "octaves_apart": 1},
        "arms": arms if isinstance(arms, Mapping) else {arm: {} for arm in arms},
        "training": {"steps": STEPS},
    }
    spec = read_any_study(raw | tables, "test")
    assert isinstance(spec, MaxLrSpec)
    return spec


def edges(where: Mapping[str, float], s: float = 0.0, noise: float = 0.0) -> Loss:
    """Loss falls to BEST one octave below each arm's edge, then the run collapses; the seed decides luck."""

    def of(trial: Trial) -> Outcome:
        x, edge = trial.tick / 16, where[trial.arm]
        luck = random.Random(f"{trial.arm} {trial.tick} {trial.seed}")
        at = edge + (s * math.log(1 / luck.uniform(0.001, 0.999) - 1) if s else 0)
        if x > at:
            return outcome(BEST + 1, spike=1.0)
        return outcome(BEST + 0.02 * abs(x - (edge - 1)) + noise * luck.gauss(0, 1))

    return of


def carry_out(spec: MaxLrSpec, loss: Loss, order: int | None = None) -> tuple[list[list[Trial]], Results]:
    """Drive the search to its end; ``order`` shuffles the results as late workers would."""
    search = rounds(spec)
    results: Results = {}
    made: list[list[Trial]] = []
    batch = list(next(search))
    while True:
        made.append(batch)
        finished = list(batch)
        if order is not None:
            random.Random(order).shuffle(finished)
        results |= {trial: loss(trial) for trial in finished}
        if order is not None:
            shuffled = list(results.items())
            random.Random(order).shuffle(shuffled)
            results = dict(shuffled)
        try:
            batch = list(search.send(results))
        except StopIteration:
            return made, results


def no_cost(arm: str) -> Any:
    raise AssertionError("limits at one size ask for no cost")


def evidence_on(results: Mapping[Trial, Outcome | None], **facts: Any) -> Evidence:
    names = {trial: f"{trial.arm} {trial.tick} {trial.seed} {trial.round}" for trial in results}
    errors = {names[trial]: "no luck" for trial, found in results.items() if found is None}
    given: dict[str, Any] = {"errors": errors, "blocks": lambda name: {}, "cost": no_cost}
    return Evidence(results, names, Path("nowhere"), **(given | facts))


def conclude(spec: MaxLrSpec, loss: Loss) -> LimitFindings:
    _, results = carry_out(spec, loss)
    return analyse(spec, evidence_on(results))


# --- learning rates ---------------------------------------------------------------------------------------------------


def slope(best: float, collapse: float, nats: float = 0.15, noise: float = 0.0) -> Callable[[float, int], float]:
    """Final loss against log2 LR: falling to ``best``, rising by ``nats`` an octave, at chance from ``collapse`` on."""

    def of(x: float, seed: int) -> float:
        luck = random.Random(f"{x} {seed}").gauss(0, 1)
        if x > collapse:
            return UNIGRAM
        return BEST + (0.2 * (best - x) if x < best else nats * (x - best)) + noise * luck

    return of


def warned(found: LimitFindings, text: str) -> bool:
    """Whether a warning contains a text."""
    return any(text in warning for warning in found.warnings)
