"""Who moved first: which probed quantity left the band of the stable runs before a run of the same arm failed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trimtab.kinds.max_lr.findings import LabelledRun, LimitFindings
from trimtab.run.folder import load_readings, load_steps
from trimtab.section import Finite
from trimtab.stats.intervals import mean_interval
from trimtab.study.labels import FAILURES, Label
from trimtab.watching import MetricKey

# The output norms, input gradients, logits, entropy and embedding spread of the papers, by the keys of the probes.
FOLLOWED = {
    "qkv_output/*/l2_norm": "QKV output, L2 norm",
    "proj_output/*/l2_norm": "Proj output, L2 norm",
    "fc1_output/*/l2_norm": "FC1 output, L2 norm",
    "fc2_output/*/l2_norm": "FC2 output, L2 norm",
    "qkv_input_grad/*/l2_norm": "gradient at QKV input, L2 norm",
    "fc1_input_grad/*/l2_norm": "gradient at FC1 input, L2 norm",
    "attention/*/max_logit": "largest attention logit",
    "attention/*/entropy": "attention entropy (nats)",
    "embedding_weight/*/tev_mean": "Token Embedding Variability",
    "all_grad/*/l2_norm": "gradient of all parameters, L2 norm",
}
FACTOR = 2.0  # the band: from the least of the stable runs over this to the greatest times this
IN_A_ROW = 3  # readings outside the band before it counts as left
SMOOTHED = 10  # steps of training loss

Series = dict[str, dict[str, list[tuple[int, float]]]]
"""Quantity -> place (``layer.0`` or ``model``) -> (step, value), steps ascending."""


@dataclass(frozen=True, slots=True)
class Mover:
    """One quantity of one layer.

    Attributes:
        step: of the first reading outside the band, for good or for three readings; None if it stayed inside.
        ratio: value over the stable runs' median at the last reading both have.
    """

    quantity: str
    place: str
    step: int | None
    ratio: float | None


@dataclass(frozen=True, slots=True)
class Growth:
    """How much larger a quantity ends in a failing run than in a stable one of the same seed, over its layers.

    Attributes:
        ratio: geometric mean over the pairs of the largest ratio among the layers, with a 95 % interval.
    """

    quantity: str
    ratio: float
    low: float | None
    high: float | None
    pairs: int


@dataclass(frozen=True, slots=True)
class Movement:
    """What moved in one arm, from a failing run just above the edge and stable runs below it.

    Attributes:
        event_step: where the training loss of the failing run leaves for good; None if it never learned or never left.
        movers: in order of the step at which they left; those that stayed come last.
    """

    stable: LabelledRun
    broken: LabelledRun
    num_stable: int
    event_step: int | None
    movers: tuple[Mover, ...]
    growth: tuple[Growth, ...]
    series: Mapping[str, Series]


def movements(findings: LimitFindings) -> dict[str, Movement]:
    """One movement per arm that has probes, a failing and a stable run."""
    found: dict[str, Movement] = {}
    for arm in findings.arms:
        runs = [run for run in findings.runs if run.trial.arm == arm and run.outcome is not None]
        stable = [run for run in runs if run.label in (Label.STABLE, Label.RECOVERED)]
        broken = [run for run in runs if run.label in FAILURES]
        if stable and broken:
            movement = _movement(findings, stable, broken)
            if movement is not None:
                found[arm] = movement
    return found


@dataclass(frozen=True, slots=True)
class MovementResults:
    """The part of ``results.json``."""

    stable_run: str
    stable_lr: Finite
    broken_run: str
    broken_lr: Finite
    stable_runs: int
    band_factor: Finite
    event_step: int | None
    movers: Sequence[Mover]
    growth: Sequence[Growth]


def results_of(movement: Movement) -> MovementResults:
    """A movement without its series."""
    return MovementResults(
        stable_run=movement.stable.run_id,
        stable_lr=movement.stable.trial.learning_rate,
        broken_run=movement.broken.run_id,
        broken_lr=movement.broken.trial.learning_rate,
        stable_runs=movement.num_stable,
        band_factor=FACTOR,
        event_step=movement.event_step,
        movers=movement.movers,
        growth=movement.growth,
    )


def _movement(findings: LimitFindings, stable: list[LabelledRun], broken: list[LabelledRun]) -> Movement | None:
    series = {run.run_id: read_series(findings, run) for run in (*stable, *broken)}
    stable = [run for run in stable if series[run.run_id]]
    broken = sorted((run for run in broken if series[run.run_id]), key=lambda run: (run.trial.tick, run.trial.seed))
    if not stable or not broken:
        return None
    worst = broken[0]
    # Beside it, the highest stable rate: of the same seed where there is one, as its data are the same.
    best = max(stable, key=lambda run: (run.trial.seed == worst.trial.seed, run.trial.tick))
    calm = [series[run.run_id] for run in stable]
    movers = [
        _mover(quantity, place, values, [one.get(quantity, {}).get(place, []) for one in calm])
        for quantity, places in series[worst.run_id].items()
        for place, values in places.items()
    ]
    movers.sort(key=lambda mover: math.inf if mover.step is None else mover.step)
    steps = load_steps(findings.evidence.folder / "runs" / worst.run_id)
    losses = [(int(row["step"]), float(row["loss"])) for row in steps if row["step"] > 0]
    event = event_step(losses, findings.spec.criterion.margin)
    growth = [_growth(quantity, stable, broken, series) for quantity in FOLLOWED]
    return Movement(
        best,
        worst,
        len(stable),
        event,
        tuple(movers),
        tuple(one for one in growth if one is not None),
        {run.run_id: series[run.run_id] for run in (best, worst)},
    )


def read_series(findings: LimitFindings, run: LabelledRun) -> Series:
    """The followed quantities of one run; heads of a layer are taken together, empty without probes."""
    series: Series = {}
    for row in load_readings(findings.evidence.folder / "runs" / run.run_id):
        heads: dict[tuple[str, str], list[float]] = {}
        for text, value in row.items():
            if "/" not in text:
                continue  # the number of the step
            key = MetricKey.parse(text)
            quantity = f"{key.what}/*/{key.statistic}"
            if quantity in FOLLOWED:
                heads.setdefault((quantity, key.without_head.where), []).append(float(value))
        for (quantity, place), values in heads.items():
            # Of several heads the largest logit, and the mean entropy.
            value = max(values) if quantity.endswith("max_logit") else statistics.fmean(values)
            series.setdefault(quantity, {}).setdefault(place, []).append((int(row["step"]), value))
    return series


def _mover(
    quantity: str, place: str, values: Sequence[tuple[int, float]], calm: Sequence[Sequence[tuple[int, float]]]
) -> Mover:
    by_step: dict[int, list[float]] = {}
    for one in calm:
        for step, value in one:
            by_step.setdefault(step, []).append(value)
    outside = [
        (step, not math.isfinite(value) or not _within(value, by_step[step]))
        for step, value in values
        if step in by_step
    ]
    left: int | None = None
    for index, (step, out) in enumerate(outside):
        if out and all(later for _, later in outside[index : index + IN_A_ROW]):
            left = step
            break
    ratio: float | None = None
    shared = [(step, value) for step, value in values if step in by_step]
    if shared:
        middle = statistics.median(by_step[shared[-1][0]])
        ratio = shared[-1][1] / middle if middle else None
    return Mover(quantity, place, left, ratio)


def _within(value: float, calm: Sequence[float]) -> bool:
    low = min(calm)
    high = max(calm)
    # A largest logit may be negative: dividing it by the factor would narrow the band.
    return min(low / FACTOR, low * FACTOR) <= value <= max(high * FACTOR, high / FACTOR)


def _growth(
    quantity: str, stable: list[LabelledRun], broken: list[LabelledRun], series: Mapping[str, Series]
) -> Growth | None:
    logs: list[float] = []
    for seed in sorted({run.trial.seed for run in broken}):
        worst = next(run for run in broken if run.trial.seed == seed)
        mine = [run for run in stable if run.trial.seed == seed and run.trial.tick < worst.trial.tick]
        if mine:
            best = max(mine, key=lambda run: run.trial.tick)
            ratios = _ratios(series[worst.run_id].get(quantity, {}), series[best.run_id].get(quantity, {}))
            if ratios:
                logs.append(math.log(max(ratios)))
    if not logs:
        return None
    mean, low, high = mean_interval(logs)
    alone = len(logs) == 1
    return Growth(
        quantity, math.exp(mean), None if alone else math.exp(low), None if alone else math.exp(high), len(logs)
    )


def _ratios(worst: dict[str, list[tuple[int, float]]], best: dict[str, list[tuple[int, float]]]) -> list[float]:
    ratios: list[float] = []
    for place, values in worst.items():
        known = dict(best.get(place, []))
        shared = [(value, known[step]) for step, value in values if step in known and math.isfinite(value)]
        if shared and shared[-1][0] > 0 and shared[-1][1] > 0:
            ratios.append(shared[-1][0] / shared[-1][1])
    return ratios


def event_step(losses: Sequence[tuple[int, float]], margin: float) -> int | None:
    """Where the smoothed training loss leaves its running minimum by more than the margin and never returns."""
    least = math.inf
    start: int | None = None
    recent = list[float]()
    for step, loss in losses:
        recent = [*recent, loss][-SMOOTHED:]
        smooth = statistics.fmean(recent)
        if smooth > least + margin or not math.isfinite(smooth):
            start = step if start is None else start
        else:
            start = None
            if len(recent) == SMOOTHED:
                least = min(least, smooth)
    return start
