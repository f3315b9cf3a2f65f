"""The probed quantities of failing runs that leave the band of sound runs of the same arm and rate, and when.

A quantity that differs between learning rates differs between failing and sound runs of different rates too. Runs are
therefore compared at equal rate and step; ``movers.other_rates`` allows the other comparison, and the page says so.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trimtab.kinds.max_lr.findings import LabelledRun, LimitFindings
from trimtab.kinds.max_lr.growth import Growth, growth_of
from trimtab.kinds.max_lr.series import FILE, Series, read_series, save_series
from trimtab.kinds.max_lr.spec import EdgeName
from trimtab.section import Finite
from trimtab.study.labels import Edge, failed
from trimtab.study.trial import SIXTEENTH

FACTOR = 2.0  # the band extends from the smallest value of the sound runs / FACTOR to the largest * FACTOR
IN_A_ROW = 3  # consecutive readings outside the band; fewer do not count
SMOOTHED = 10  # steps over which the training loss is averaged


@dataclass(frozen=True, slots=True)
class Mover:
    """A quantity of a layer, or of the whole model, in one failing run.

    Attributes:
        step: step of the first of three consecutive readings outside the band (fewer at the end of the run); None if
            there is no such reading.
        ratio: value over the median of the sound runs, at the last step that both have; None without such a step.
    """

    quantity: str
    place: str
    step: int | None
    ratio: float | None


@dataclass(frozen=True, slots=True)
class Movement:
    """The movers of an arm: its failing runs compared with its sound runs.

    Attributes:
        edge: the edge at which a run fails.
        same_rate: whether all runs have the same LR; otherwise differences contain an effect of the rate.
        sound: the sound runs.
        failing: the failing runs; the first is drawn, and its movers are given.
        event_step: the step from which the training loss of the first failing run stays above its running minimum plus
            the margin; None if there is no such step.
        movers: in order of their step; quantities that stayed inside the band come last.
        growth: of every quantity, over all runs.
        above: runs about an octave above, and their growth against the sound runs, which contains the effect of the
            rate; None without such runs.
        series: of all these runs, by run id.
    """

    edge: EdgeName
    same_rate: bool
    sound: Sequence[LabelledRun]
    failing: Sequence[LabelledRun]
    event_step: int | None
    movers: Sequence[Mover]
    growth: Sequence[Growth]
    above: tuple[Sequence[LabelledRun], Sequence[Growth]] | None
    series: Mapping[str, Series]


@dataclass(frozen=True, slots=True)
class Movements:
    """The movements of all arms that have one.

    Attributes:
        refused: arms with probes, failing and sound runs, and no rate that has both.
    """

    by_arm: Mapping[str, Movement]
    refused: Sequence[str]


@dataclass(frozen=True, slots=True)
class MovementResults:
    """A movement in ``results.json``; ``drawn`` are the ids of the sound and the failing run in the charts."""

    edge: EdgeName
    same_rate: bool
    lr: Finite
    sound_lr: Finite
    drawn: tuple[str, str]
    sound_runs: int
    failing_runs: int
    band_factor: Finite
    event_step: int | None
    movers: Sequence[Mover]
    growth: Sequence[Growth]
    runs_above: int
    lr_above: float | None
    growth_above: Sequence[Growth]


def movements(findings: LimitFindings) -> Movements:
    """Return a movement for every arm with probes, failing runs, and sound runs at the same rate."""
    by_arm: dict[str, Movement] = {}
    refused: list[str] = []
    for arm in findings.arms if findings.learned else ():
        judged = _judged(findings, arm)
        if not judged.sound or not judged.failing:
            continue
        groups = judged.at_equal_rate() or (judged if findings.spec.movers.other_rates else None)
        if groups is None:
            refused.append(arm)
        else:
            by_arm[arm] = _movement(findings, judged, groups)
    return Movements(by_arm, refused)


def keep(findings: LimitFindings, folder: Path) -> None:
    """Write the series of the runs of the movements into a folder; of all runs while the study is unfinished.

    The movements of an unfinished study may come to compare other runs.
    """
    evidence = findings.evidence
    if evidence.complete:
        moved = movements(findings).by_arm.values()
        series = {run_id: one for movement in moved for run_id, one in movement.series.items()}
    else:
        series = read_series(evidence.folder, [run.run_id for run in findings.runs if run.outcome is not None])
    if series:
        save_series(series, folder / FILE)


def results_of(movement: Movement) -> MovementResults:
    """Return a movement without its series."""
    sound, failing = drawn(movement)
    runs_above, growth_above = movement.above or ((), ())
    return MovementResults(
        edge=movement.edge,
        same_rate=movement.same_rate,
        lr=failing.trial.learning_rate,
        sound_lr=sound.trial.learning_rate,
        drawn=(sound.run_id, failing.run_id),
        sound_runs=len(movement.sound),
        failing_runs=len(movement.failing),
        band_factor=FACTOR,
        event_step=movement.event_step,
        movers=movement.movers,
        growth=movement.growth,
        runs_above=len(runs_above),
        lr_above=runs_above[0].trial.learning_rate if runs_above else None,
        growth_above=growth_above,
    )


def drawn(movement: Movement) -> tuple[LabelledRun, LabelledRun]:
    """Return the sound and the failing run that the charts show.

    Runs of different rates are drawn with the same seed if possible: they see the same data.
    """
    failing = movement.failing[0]
    return max(movement.sound, key=lambda run: (run.trial.seed == failing.trial.seed, run.trial.tick)), failing


@dataclass(frozen=True, slots=True)
class _Judged:
    """Runs of an arm with readings, by their result at one edge; ascending by rate and seed."""

    sound: Sequence[LabelledRun]
    failing: Sequence[LabelledRun]
    series: Mapping[str, Series]

    def at_equal_rate(self) -> _Judged | None:
        """The runs at the rate with the most runs in its smaller group; None if no rate has both."""
        ticks = sorted({run.trial.tick for run in self.sound} & {run.trial.tick for run in self.failing})
        if not ticks:
            return None
        at = [self.at(tick) for tick in ticks]
        return max(at, key=lambda groups: min(len(groups.sound), len(groups.failing)))

    def at(self, tick: int) -> _Judged:
        """The runs at one rate."""
        sound, failing = ([r for r in group if r.trial.tick == tick] for group in (self.sound, self.failing))
        return _Judged(sound, failing, self.series)

    def octave_above(self, tick: int) -> list[LabelledRun]:
        """The runs at the rate nearest to an octave above, if it is no further than a quarter octave from that."""
        runs = [*self.sound, *self.failing]
        near = [r.trial.tick for r in runs if abs(r.trial.tick - tick - SIXTEENTH) <= SIXTEENTH // 4]
        if not near:
            return []
        nearest = min(near, key=lambda other: (abs(other - tick - SIXTEENTH), other))
        return [run for run in runs if run.trial.tick == nearest]

    def of(self, runs: Sequence[LabelledRun]) -> list[Series]:
        """The series of runs."""
        return [self.series[run.run_id] for run in runs]


def _judged(findings: LimitFindings, arm: str) -> _Judged:
    edge = Edge(findings.spec.movers.edge)
    known = [run for run in findings.runs if run.trial.arm == arm and run.outcome is not None]
    known.sort(key=lambda run: (run.trial.tick, run.trial.seed))
    unique = list({run.run_id: run for run in known}.values())
    series = read_series(findings.evidence.folder, [run.run_id for run in unique])
    read = [run for run in unique if run.run_id in series]
    sound, failing = ([run for run in read if failed(run.label, edge) is wanted] for wanted in (False, True))
    return _Judged(sound, failing, series)


def _movement(findings: LimitFindings, judged: _Judged, groups: _Judged) -> Movement:
    same_rate = len({run.trial.tick for run in (*groups.sound, *groups.failing)}) == 1
    worst = groups.series[groups.failing[0].run_id]
    calm = groups.of(groups.sound)
    movers = [
        _mover(quantity, place, _points(worst, quantity, place), [_points(run, quantity, place) for run in calm])
        for quantity, places in worst.values.items()
        for place in places
    ]
    movers.sort(key=lambda mover: math.inf if mover.step is None else mover.step)
    losses = list(enumerate(worst.losses.tolist(), start=1))
    warmup = findings.spec.arms[groups.failing[0].trial.arm].protocol.schedule.warmup_steps
    runs_above = judged.octave_above(groups.failing[0].trial.tick) if same_rate else []
    above = (runs_above, growth_of(judged.of(runs_above), calm, warmup)) if runs_above else None
    return Movement(
        edge=findings.spec.movers.edge,
        same_rate=same_rate,
        sound=groups.sound,
        failing=groups.failing,
        event_step=event_step(losses, findings.spec.criterion.margin),
        movers=movers,
        growth=growth_of(groups.of(groups.failing), calm, warmup),
        above=above,
        series={run.run_id: groups.series[run.run_id] for run in (*groups.sound, *groups.failing, *runs_above)},
    )


def _points(series: Series, quantity: str, place: str) -> list[tuple[int, float]]:
    values = series.values.get(quantity, {}).get(place)
    return [] if values is None else list(zip(series.steps.tolist(), values.tolist(), strict=True))


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
