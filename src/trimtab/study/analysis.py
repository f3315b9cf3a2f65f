"""From outcomes to answers: how far each arm's learning rate goes, by every margin, and what to be wary of."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from trimtab.run.folder import Outcome
from trimtab.stats.comparison import clipped_density, difference, holm, smallest_visible_shift
from trimtab.stats.isotonic import centred_isotonic_level
from trimtab.stats.posterior import EdgeModel, EdgePosterior, Floats, Trials
from trimtab.stats.sensitivity import lr_sensitivity
from trimtab.study.labels import Label, failed, label
from trimtab.study.search import SIXTEENTH, PhaseOne, Results, Trial, one_edge, phase_one, trials_of
from trimtab.study.spec import StudySpec

Bound = Literal["above", "below", "no_clear_boundary", "no_data", "undetermined"]
CRITERIA: Mapping[str, float] = {"half_d": 0.5, "d": 1.0, "double_d": 2.0, "strict": 1.0}
INTERVAL = (0.025, 0.5, 0.975)
ISOTONIC_SLACK = 2**0.25  # the model-free estimate has noise of its own
LATE_SHARE = 0.2  # the last fifth of the steps


@dataclass(frozen=True, slots=True)
class Estimate:
    """A learning rate or a ratio: posterior median and 95 % interval.

    Attributes:
        bound: why there is no plain estimate; ``above``: at least ``estimate``; ``below``: at most.
        low, high: None where the interval leaves the tested range.
    """

    estimate: float | None
    low: float | None
    high: float | None
    bound: Bound | None = None


@dataclass(frozen=True, slots=True)
class Limit:
    """The LR at which half of the runs fail, and the one at which a tenth does."""

    lr50: Estimate
    lr10: Estimate


@dataclass(frozen=True, slots=True)
class CriterionFindings:
    """The answers for one arm under one criterion; ``p_value`` is of the LR50 ratio, before and after Holm."""

    breaks: Limit
    usable: Limit
    ratio: Limit
    p_value: float | None
    p_holm: float | None


@dataclass(frozen=True, slots=True)
class ArmFindings:
    """The answers for one arm.

    Attributes:
        best_loss: lowest mean final loss at one LR of phase 1, in nats.
        visible_shift: smallest difference to the reference that these data would show, in octaves.
        isotonic_lr50: the model-free check; infinite where the failure rate never crosses a half.
        posterior: (log2 LR, probability) of LR50 by the main criterion; empty without one.
    """

    method: str
    best_loss: float
    best_lr: float
    lr_sensitivity: float
    counts: Mapping[str, int]
    criteria: Mapping[str, CriterionFindings]
    visible_shift: float | None
    isotonic_lr50: float | None
    edge_width: Estimate | None
    posterior: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class LabelledRun:
    """One run of the study."""

    trial: Trial
    run_id: str
    label: Label
    outcome: Outcome | None


@dataclass(frozen=True, slots=True)
class Findings:
    """A finished study: what was found and all it rests on."""

    spec: StudySpec
    folder: Path
    learned: bool
    reference_loss: float
    unigram_entropy: float
    log_vocab: float
    seed_sd: float
    arms: Mapping[str, ArmFindings]
    runs: Sequence[LabelledRun]
    warnings: Sequence[str]
    errors: Mapping[str, str]


def analyse(
    spec: StudySpec, results: Results, run_ids: Mapping[Trial, str], folder: Path, errors: Mapping[str, str]
) -> Findings:
    """Everything a report states, from the outcomes of a finished search."""
    phase = phase_one(spec, results)
    runs = [
        LabelledRun(
            t,
            run_ids[t],
            label(results[t], t.tick, phase.yardstick(t.arm), spec.criterion, spec.criterion.margin),
            results[t],
        )
        for t in sorted(results, key=lambda t: (list(spec.arms).index(t.arm), t))
    ]
    sweep = spec.learning_rates.sweep()
    model = EdgeModel(sweep[0] / SIXTEENTH, sweep[-1] / SIXTEENTH)
    tables = {name: _criterion(spec, phase, results, model, name) for name in CRITERIA}
    arms = {arm: _arm(spec, phase, results, runs, arm, tables) for arm in spec.arms}
    outcomes = [run.outcome for run in runs if run.outcome is not None]
    return Findings(
        spec=spec,
        folder=folder,
        learned=phase.learned,
        reference_loss=phase.reference_loss,
        unigram_entropy=phase.unigram_entropy,
        log_vocab=outcomes[0].log_vocab if outcomes else math.nan,
        seed_sd=phase.seed_sd,
        arms=arms,
        runs=runs,
        warnings=_warnings(spec, phase, runs, arms),
        errors={run.run_id: errors.get(run.run_id, "") for run in runs if run.outcome is None},
    )


@dataclass(frozen=True)
class _Table:
    """One criterion over all arms."""

    breaks: Mapping[str, EdgePosterior]  # of the arms whose failures are one edge
    trials: Mapping[str, Trials]
    findings: Mapping[str, CriterionFindings]


def _criterion(spec: StudySpec, phase: PhaseOne, results: Results, model: EdgeModel, name: str) -> _Table:
    margin, strict = spec.criterion.margin * CRITERIA[name], name == "strict"
    sides: list[tuple[dict[str, Trials], dict[str, EdgePosterior]]] = []
    unclear: set[str] = set()
    for usable in (False, True):
        trials: dict[str, Trials] = {}
        for arm in spec.arms:
            yardstick = phase.yardstick(arm, usable=usable)
            labelled = [
                (t, label(results[t], t.tick, yardstick, spec.criterion, margin))
                for t in sorted(results)
                if t.arm == arm
            ]
            trials[arm] = trials_of(labelled if phase.learned else [], strict=strict)
            if (
                phase.learned
                and not strict
                and not usable
                and not one_edge(arm, results, yardstick, spec.criterion, margin)
            ):
                unclear.add(arm)
        sides.append((trials, model.fit({arm: t for arm, t in trials.items() if arm not in unclear})))
    (trials, breaks), (usable_trials, usable_posteriors) = sides
    reference = spec.reference
    ratios = {
        arm: difference(breaks[arm], breaks[reference])
        for arm in breaks
        if arm != reference and reference in breaks and len(trials[arm].x) and len(trials[reference].x)
    }
    adjusted = holm({arm: ratio.p_value for arm, ratio in ratios.items()})
    findings: dict[str, CriterionFindings] = {}
    for arm in spec.arms:
        own = _limit(breaks.get(arm), trials[arm])
        findings[arm] = CriterionFindings(
            breaks=own,
            usable=_limit(usable_posteriors.get(arm), usable_trials[arm]),
            ratio=_ratio(arm, reference, breaks, trials),
            p_value=ratios[arm].p_value if arm in ratios else None,
            p_holm=adjusted.get(arm),
        )
    return _Table(breaks, trials, findings)


def _limit(posterior: EdgePosterior | None, trials: Trials) -> Limit:
    return Limit(_estimate(posterior, trials, 0.5), _estimate(posterior, trials, 0.1))


def _estimate(posterior: EdgePosterior | None, trials: Trials, level: float) -> Estimate:
    if posterior is None:
        return Estimate(None, None, None, "no_clear_boundary")
    bound = _bound(posterior, trials, level)
    if bound == "no_data":
        return Estimate(None, None, None, bound)
    low, median, high = (float(x) for x in posterior.quantiles(INTERVAL, level))
    inside = [2.0**x if posterior.low <= x <= posterior.high else None for x in (low, high)]
    if bound == "above":
        return Estimate(2.0**posterior.high, inside[0], None, bound)
    if bound == "below":
        return Estimate(2.0**posterior.low, None, inside[1], bound)
    return Estimate(2.0**median, inside[0], inside[1])


def _bound(posterior: EdgePosterior, trials: Trials, level: float) -> Bound | None:
    if len(trials.x) == 0:
        return "no_data"
    if not trials.failed.any():
        return "above"
    if trials.failed.all():
        return "below"
    median = float(posterior.quantiles((0.5,), level)[0])
    return "above" if median > posterior.high else "below" if median < posterior.low else None


# (bound of the arm, bound of the reference) -> bound of their ratio; what is not here is undetermined.
_RATIO_BOUNDS: Mapping[tuple[Bound | None, Bound | None], Bound | None] = {
    (None, None): None,
    ("above", None): "above",
    (None, "below"): "above",
    ("above", "below"): "above",
    ("below", None): "below",
    (None, "above"): "below",
    ("below", "above"): "below",
}


def _ratio(arm: str, reference: str, posteriors: Mapping[str, EdgePosterior], trials: Mapping[str, Trials]) -> Limit:
    def one(level: float) -> Estimate:
        if arm == reference:
            return Estimate(1.0, 1.0, 1.0)
        if arm not in posteriors or reference not in posteriors:
            return Estimate(None, None, None, "no_clear_boundary")
        own = _bound(posteriors[arm], trials[arm], level)
        other = _bound(posteriors[reference], trials[reference], level)
        if "no_data" in (own, other):
            return Estimate(None, None, None, "no_data")
        found = difference(posteriors[arm], posteriors[reference], level)
        bound = _RATIO_BOUNDS.get((own, other), "undetermined")
        if bound == "undetermined":
            return Estimate(None, None, None, bound)
        # An end is open where it rests on an end that left the tested range.
        lows, highs = zip(
            *(posteriors[name].quantiles((0.025, 0.975), level) for name in (arm, reference)), strict=True
        )
        tested = posteriors[arm]
        open_above = highs[0] > tested.high or lows[1] < tested.low
        open_below = lows[0] < tested.low or highs[1] > tested.high
        low = None if open_below else 2.0**found.low
        high = None if open_above else 2.0**found.high
        return Estimate(2.0**found.median, None if bound == "below" else low, None if bound == "above" else high, bound)

    return Limit(one(0.5), one(0.1))


def _arm(
    spec: StudySpec,
    phase: PhaseOne,
    results: Results,
    runs: Sequence[LabelledRun],
    arm: str,
    tables: Mapping[str, _Table],
) -> ArmFindings:
    own = [run for run in runs if run.trial.arm == arm]
    counted = Counter(run.label.value for run in own)
    by_tick: dict[int, list[Outcome]] = {}
    for run in own:
        if run.trial.round == 0 and run.outcome is not None:
            by_tick.setdefault(run.trial.tick, []).append(run.outcome)
    finals = [sum(o.final_loss for o in found) / len(found) for _, found in sorted(by_tick.items())]
    initial = next((o.initial_loss for found in by_tick.values() for o in found), math.nan)
    main = tables.get("d")
    posterior = main.breaks.get(arm) if main else None
    reference = main.breaks.get(spec.reference) if main else None
    return ArmFindings(
        method=spec.arms[arm].method,
        best_loss=phase.best[arm].loss,
        best_lr=2.0 ** (phase.best[arm].tick / SIXTEENTH),
        lr_sensitivity=lr_sensitivity(finals, initial),
        counts={one.value: counted[one.value] for one in Label},
        criteria={name: table.findings[arm] for name, table in tables.items()},
        visible_shift=smallest_visible_shift(posterior, reference)
        if posterior and reference and arm != spec.reference
        else None,
        isotonic_lr50=2.0 ** centred_isotonic_level(main.trials[arm]) if main and posterior else None,
        edge_width=_width(posterior) if posterior else None,
        posterior=tuple(zip(posterior.x50.tolist(), posterior.density().tolist(), strict=True)) if posterior else (),
    )


def _width(posterior: EdgePosterior) -> Estimate:
    low, median, high = (float(x) for x in posterior.width_quantiles(INTERVAL))
    return Estimate(median, low, high)


def _warnings(
    spec: StudySpec, phase: PhaseOne, runs: Sequence[LabelledRun], arms: Mapping[str, ArmFindings]
) -> list[str]:
    margin = spec.criterion.margin
    if not phase.learned:
        return [
            f"reference never learned: the best final loss of '{spec.reference}', {phase.reference_loss:.3f} nats, is "
            f"not below unigram entropy, {phase.unigram_entropy:.3f}; train longer or lower the learning rates"
        ]
    found: list[str] = []
    if math.isfinite(phase.seed_sd) and margin < 4 * phase.seed_sd:
        found.append(
            f"the margin of {margin} nats is less than 4 times the spread between seeds, "
            f"{phase.seed_sd:.3f} nats: labels near the edge are partly luck"
        )
    if phase.unclear:
        found.append(
            "no clear boundary (failures of the first sweep are not one edge in LR): " + ", ".join(phase.unclear)
        )
    missing = [run for run in runs if run.label is Label.NO_OUTCOME]
    if len(missing) > 0.05 * len(runs):
        found.append(f"{len(missing)} of {len(runs)} runs have no outcome (the machine's fault, not counted)")
    failures = [run for run in runs if failed(run.label)]
    late = [
        run
        for run in failures
        if run.outcome is not None
        and departure(run.outcome, margin) is not None
        and (departure(run.outcome, margin) or 0) > (1 - LATE_SHARE) * spec.protocol.training.steps
    ]
    if failures and len(late) > 0.1 * len(failures):
        found.append(
            f"{len(late)} of {len(failures)} failures began in the last fifth of the steps: "
            "the horizon is too short for a limit to be final"
        )
    orders = _orders(arms, ("half_d", "d", "double_d"))
    if len(set(orders.values())) > 1:
        found.append(
            "the order of the arms depends on the margin: "
            + "; ".join(f"{name}: {' < '.join(order)}" for name, order in orders.items())
        )
    for arm, findings in arms.items():
        limit = findings.criteria["d"].breaks.lr50
        iso = findings.isotonic_lr50
        low, high = limit.low or 0.0, limit.high or math.inf
        if limit.bound is None and iso is not None and not low / ISOTONIC_SLACK <= iso <= high * ISOTONIC_SLACK:
            found.append(f"{arm}: the model-free estimate {iso:.3g} lies well outside the interval of LR50")
    return found


def limit_draws(arm: ArmFindings, spec: StudySpec, number: int, rng: np.random.Generator) -> Floats:
    """Draws of log2 LR50 from an arm's posterior, what lies outside the tested range held at its end."""
    grid, weight = np.array(arm.posterior).T
    sweep = spec.learning_rates.sweep()
    posterior = EdgePosterior(grid, weight[:, None], sweep[0] / SIXTEENTH, sweep[-1] / SIXTEENTH)
    return np.asarray(rng.choice(grid, number, p=clipped_density(posterior, 0.5)), dtype=np.float64)


def departure(outcome: Outcome, margin: float) -> int | None:
    """First step of an excursion above the running minimum + margin that never returns; None if there is none."""
    lowest, start = math.inf, None
    for step, loss in outcome.held_out:
        away = loss > lowest + margin or not math.isfinite(loss)
        start = (step if start is None else start) if away else None
        lowest = min(lowest, loss) if math.isfinite(loss) else lowest
    return outcome.steps if start is None and outcome.stopped is not None else start


def _orders(arms: Mapping[str, ArmFindings], criteria: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Per criterion the arms by LR50, of those that have one under all of them; ties within 1/16 octave by name."""

    def tick(arm: str, criterion: str) -> int | None:
        limit = arms[arm].criteria[criterion].breaks.lr50.estimate
        return None if limit is None else round(math.log2(limit) * SIXTEENTH)

    known = [arm for arm in arms if all(tick(arm, criterion) is not None for criterion in criteria)]
    return {c: tuple(sorted(known, key=lambda arm: (tick(arm, c) or 0, arm))) for c in criteria}
