"""Find the probed quantities of a failing run that leave the band of the stable runs of the same arm, and when."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trimtab.kinds.max_lr.findings import LabelledRun, LimitFindings
from trimtab.kinds.max_lr.growth import Growth, growth_of
from trimtab.kinds.max_lr.series import FOLLOWED, Series, read_series
from trimtab.run.folder import load_steps
from trimtab.section import Finite
from trimtab.study.labels import FAILURES, Label

FACTOR = 2.0  # the band extends from the smallest value of the stable runs / FACTOR to the largest * FACTOR
IN_A_ROW = 3  # consecutive readings outside the band; fewer do not count
SMOOTHED = 10  # steps over which the training loss is averaged


@dataclass(frozen=True, slots=True)
class Mover:
    """A quantity of a layer, or of the whole model.

    Attributes:
        step: step of the first of three consecutive readings outside the band (fewer at the end of the run); None if
            there is no such reading.
        ratio: value over the median of the stable runs, at the last step that both have; None without such a step.
    """

    quantity: str
    place: str
    step: int | None
    ratio: float | None


@dataclass(frozen=True, slots=True)
class Movement:
    """The movers of an arm: its failing run at the lowest LR compared with its stable runs.

    Attributes:
        stable: the stable run that is drawn: of the seed of ``broken`` if there is one, at the highest LR.
        broken: the failing run.
        event_step: the step from which the training loss of the failing run stays above its running minimum plus the
            margin; None if there is no such step.
        movers: in order of their step; quantities that stayed inside the band come last.
        growth: of every quantity, over all failing runs.
        series: of ``stable`` and ``broken``, by run id.
    """

    stable: LabelledRun
    broken: LabelledRun
    num_stable: int
    event_step: int | None
    movers: tuple[Mover, ...]
    growth: tuple[Growth, ...]
    series: Mapping[str, Series]


def movements(findings: LimitFindings) -> dict[str, Movement]:
    """Return a movement for every arm with probes, a failing run and a stable run."""
    by_arm: dict[str, Movement] = {}
    for arm in findings.arms:
        runs = [run for run in findings.runs if run.trial.arm == arm and run.outcome is not None]
        stable = [run for run in runs if run.label in (Label.STABLE, Label.RECOVERED)]
        broken = [run for run in runs if run.label in FAILURES]
        if stable and broken:
            movement = _movement(findings, stable, broken)
            if movement is not None:
                by_arm[arm] = movement
    return by_arm


@dataclass(frozen=True, slots=True)
class MovementResults:
    """A movement in ``results.json``."""

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
    """Return a movement without its series."""
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
    # A run of the same seed sees the same data; among those, the highest stable LR is the nearest.
    best = max(stable, key=lambda run: (run.trial.seed == worst.trial.seed, run.trial.tick))
    calm = [series[run.run_id] for run in stable]
    movers = [
        _mover(quantity, place, values, [of_run.get(quantity, {}).get(place, []) for of_run in calm])
        for quantity, places in series[worst.run_id].items()
        for place, values in places.items()
    ]
    movers.sort(key=lambda mover: math.inf if mover.step is None else mover.step)
    steps = load_steps(findings.evidence.folder / "runs" / worst.run_id)
    losses = [(int(row["step"]), float(row["loss"])) for row in steps if row["step"] > 0]
    event = event_step(losses, findings.spec.criterion.margin)
    growth = [growth_of(quantity, stable, broken, series) for quantity in FOLLOWED]
    return Movement(
        best,
        worst,
        len(stable),
        event,
        tuple(movers),
        tuple(ratio for ratio in growth if ratio is not None),
        {run.run_id: series[run.run_id] for run in (best, worst)},
    )


def _mover(
    quantity: str, place: str, values: Sequence[tuple[int, float]], calm: Sequence[Sequence[tuple[int, float]]]
) -> Mover:
    by_step: dict[int, list[float]] = {}
    for readings in calm:
        for step, value in readings:
            by_step.setdefault(step, []).append(value)
    outside = [
        (step, not math.isfinite(value) or not _within(value, by_step[step]))
        for step, value in values
        if step in by_step
    ]
    departure: int | None = None
    for index, (step, out) in enumerate(outside):
        if out and all(later for _, later in outside[index : index + IN_A_ROW]):
            departure = step
            break
    ratio: float | None = None
    shared = [(step, value) for step, value in values if step in by_step]
    if shared:
        middle = statistics.median(by_step[shared[-1][0]])
        ratio = shared[-1][1] / middle if middle else None
    return Mover(quantity, place, departure, ratio)


def _within(value: float, calm: Sequence[float]) -> bool:
    low = min(calm)
    high = max(calm)
    # The largest logit may be negative; dividing a negative bound by the factor would narrow the band.
    return min(low / FACTOR, low * FACTOR) <= value <= max(high * FACTOR, high / FACTOR)


def event_step(losses: Sequence[tuple[int, float]], margin: float) -> int | None:
    """Return the step from which the smoothed training loss stays above its running minimum plus the margin.

    The loss is averaged over 10 steps. A loss that is not finite counts as above. None if there is no such step.
    """
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
