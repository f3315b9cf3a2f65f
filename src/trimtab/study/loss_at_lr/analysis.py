"""From outcomes to differences: each arm against the reference, over seeds and text, and what its loss cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trimtab.run.cost import Cost, cost_of
from trimtab.run.folder import Outcome, load_texts
from trimtab.stats.comparison import holm
from trimtab.stats.intervals import mean_interval
from trimtab.stats.paired import PairedDifference, paired_difference
from trimtab.study.arms import SIXTEENTH
from trimtab.study.loss_at_lr.rounds import COMPARING, never_tuned, ticks_of, tuned_at_an_end
from trimtab.study.loss_at_lr.spec import LossStudySpec, Place
from trimtab.study.search import Results, Trial

Blocks = Mapping[str, Sequence[float]]
LARGEST_EXPONENT = 700.0
EXPLOSION_MARGIN = 0.1  # nats above a uniform guess beyond which a final loss says nothing of an arm


@dataclass(frozen=True, slots=True)
class ComparedRun:
    """One run of the study, with its final loss by held-out part and block."""

    trial: Trial
    run_id: str
    outcome: Outcome | None
    blocks: Blocks

    @property
    def sound(self) -> bool:
        """Whether it ran to its end with finite losses, no worse than a uniform guess."""
        if self.outcome is None or self.outcome.stopped is not None or not self.blocks:
            return False
        if not self.outcome.final_loss <= self.outcome.log_vocab + EXPLOSION_MARGIN:
            return False
        return all(math.isfinite(loss) for some in self.blocks.values() for loss in some)

    @property
    def loss(self) -> float:
        """Mean final loss over all blocks, in nats per token; nan where it is not sound."""
        return float(np.mean(_row(self.blocks))) if self.sound else math.nan


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over seeds with its 95 % Student interval; nan where there are too few."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Saving:
    """Share of the reference's tokens and compute that an arm does without, until it reaches the reference's loss.

    Attributes:
        reached: seeds in which the loss is reached at all.
        tokens: share saved, over those seeds; below 0 where more are needed.
        compute: the same in FLOPs.
    """

    reached: int
    seeds: int
    tokens: Mean
    compute: Mean


@dataclass(frozen=True, slots=True)
class Compared:
    """One arm at one rate.

    Attributes:
        place: its line and size.
        multiple: of the base rate.
        broken: runs that exploded or were not finite.
        missing: runs without outcome.
        loss: mean final loss, nats per token, over the sound runs.
        perplexity: exp of it.
        bits_per_byte: nan where tokens are no text.
        by_text: mean final loss of each held-out part.
        difference: loss minus the reference's, over the seeds in which both are sound; None for the reference, and
            where fewer than one seed or two blocks are left.
        difference_by_text: the same for each held-out part.
        p_holm: Holm's p-value over the arms of the same size and rate.
        saving: of tokens and compute; None for the reference.
    """

    name: str
    place: Place
    multiple: float
    learning_rate: float
    broken: int
    missing: int
    loss: Mean
    perplexity: float
    bits_per_byte: float
    by_text: Mapping[str, float]
    difference: PairedDifference | None
    difference_by_text: Mapping[str, PairedDifference]
    p_holm: float | None
    saving: Saving | None
    curve: Sequence[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Slope:
    """How the difference to the reference changes with each doubling of depth, over seeds, in nats."""

    line: str
    multiple: float
    mean: Mean


@dataclass(frozen=True, slots=True)
class LossFindings:
    """A finished comparison: what was found and all it rests on."""

    spec: LossStudySpec
    folder: Path
    compared: Sequence[Compared]
    slopes: Sequence[Slope]
    costs: Mapping[str, Cost]
    runs: Sequence[ComparedRun]
    warnings: Sequence[str]
    errors: Mapping[str, str]


def analyse(
    spec: LossStudySpec, results: Results, run_ids: Mapping[Trial, str], folder: Path, errors: Mapping[str, str]
) -> LossFindings:
    """Everything a report states, from the outcomes of a finished study and the block losses beside them."""
    runs = [
        ComparedRun(trial, run_ids[trial], results[trial], _blocks(folder, run_ids[trial]))
        for trial in sorted(results, key=lambda t: (t.round, list(spec.arms).index(t.arm), t.tick, t.seed))
    ]
    return assess(spec, runs, folder, errors)


def assess(spec: LossStudySpec, runs: Sequence[ComparedRun], folder: Path, errors: Mapping[str, str]) -> LossFindings:
    """The same from runs whose block losses are known."""
    results = {run.trial: run.outcome for run in runs}
    ticks, costs = ticks_of(spec, results), {name: cost_of(arm.run(0, 0)) for name, arm in spec.arms.items()}
    found = {(run.trial.arm, run.trial.tick, run.trial.seed): run for run in runs if run.trial.round == COMPARING}
    cells = {
        (name, multiple): [found[name, tick, seed] for seed in range(spec.comparison.seeds)]
        for name in spec.arms
        for multiple, tick in ticks[name].items()
    }
    compared = [_compared(spec, cells, costs, name, multiple, ticks[name][multiple]) for name, multiple in cells]
    compared = _with_holm(spec, compared)
    return LossFindings(
        spec=spec,
        folder=folder,
        compared=compared,
        slopes=_slopes(spec, cells),
        costs=costs,
        runs=runs,
        warnings=_warnings(spec, results, runs, compared),
        errors={run.run_id: errors.get(run.run_id, "") for run in runs if run.outcome is None},
    )


Cells = Mapping[tuple[str, float], Sequence[ComparedRun]]


def _compared(
    spec: LossStudySpec, cells: Cells, costs: Mapping[str, Cost], name: str, multiple: float, tick: int
) -> Compared:
    runs, place = cells[name, multiple], spec.places[name]
    sound = [run for run in runs if run.sound]
    loss = Mean(*mean_interval([run.loss for run in sound]))
    per_token = next((run.outcome.bytes_per_token for run in sound if run.outcome is not None), math.nan)
    texts = {text: float(np.mean([run.blocks[text] for run in sound])) for text in (sound[0].blocks if sound else ())}
    reference = spec.name_of(spec.reference, place.size)
    pairs = [
        (own, other) for own, other in zip(runs, cells[reference, multiple], strict=True) if own.sound and other.sound
    ]
    comparable = bool(pairs) and len(_row(pairs[0][0].blocks)) > 1
    is_reference = place.line == spec.reference
    split = [text for text in texts if comparable and not is_reference and len(pairs[0][0].blocks[text]) > 1]
    return Compared(
        name=name,
        place=place,
        multiple=multiple,
        learning_rate=2.0 ** (tick / SIXTEENTH),
        broken=sum(run.outcome is not None and not run.sound for run in runs),
        missing=sum(run.outcome is None for run in runs),
        loss=loss,
        perplexity=math.exp(loss.mean) if not loss.mean > LARGEST_EXPONENT else math.inf,
        bits_per_byte=loss.mean / math.log(2) / per_token,
        by_text=texts,
        difference=None if is_reference or not comparable else paired_difference(_differences(pairs)),
        difference_by_text={text: paired_difference(_differences(pairs, text)) for text in split},
        p_holm=None,
        saving=None if is_reference else _saving(spec, pairs, costs[name], costs[reference]),
        curve=_mean_curve(sound),
    )


def _row(blocks: Blocks, text: str = "") -> list[float]:
    return list(blocks[text]) if text else [loss for name in sorted(blocks) for loss in blocks[name]]


def _differences(pairs: Sequence[tuple[ComparedRun, ComparedRun]], text: str = "") -> NDArray[np.float64]:
    return np.array([np.subtract(_row(own.blocks, text), _row(other.blocks, text)) for own, other in pairs])


def _saving(
    spec: LossStudySpec, pairs: Sequence[tuple[ComparedRun, ComparedRun]], cost: Cost, reference: Cost
) -> Saving:
    shares: list[float] = []
    for own, other in pairs:
        assert own.outcome is not None
        assert other.outcome is not None
        reached = first_step_at(own.outcome.held_out, other.outcome.final_loss)
        if reached is not None:
            own_tokens, tokens = (_tokens_per_step(spec, run) for run in (own, other))
            shares.append(reached * own_tokens / (other.outcome.steps * tokens))
    dearer = cost.flops_per_token / reference.flops_per_token
    return Saving(
        reached=len(shares),
        seeds=len(pairs),
        tokens=Mean(*mean_interval([1 - share for share in shares])),
        compute=Mean(*mean_interval([1 - share * dearer for share in shares])),
    )


def _tokens_per_step(spec: LossStudySpec, run: ComparedRun) -> int:
    protocol = spec.arms[run.trial.arm].protocol
    return protocol.training.batch_size * protocol.model.context


def first_step_at(curve: Sequence[tuple[int, float]], loss: float) -> float | None:
    """The step, between two evaluations by a straight line, at which a held-out curve first comes down to a loss."""
    before: tuple[int, float] | None = None
    for step, value in curve:
        if value <= loss:
            if before is None or before[1] == value:
                return float(step)
            return before[0] + (step - before[0]) * (before[1] - loss) / (before[1] - value)
        before = (step, value) if math.isfinite(value) else before
    return None


def _mean_curve(runs: Sequence[ComparedRun]) -> list[tuple[int, float]]:
    by_step: dict[int, list[float]] = {}
    for run in runs:
        for step, loss in run.outcome.held_out if run.outcome is not None else ():
            by_step.setdefault(step, []).append(loss)
    return [(step, sum(losses) / len(losses)) for step, losses in sorted(by_step.items())]


def _with_holm(spec: LossStudySpec, compared: Sequence[Compared]) -> list[Compared]:
    adjusted: dict[tuple[str, float], float] = {}
    for size in spec.size_names:
        for multiple in spec.comparison.multiples:
            p_values = {
                one.name: one.difference.p_value
                for one in compared
                if (one.place.size, one.multiple) == (size, multiple)
                and one.difference is not None
                and math.isfinite(one.difference.p_value)
            }
            adjusted |= {(name, multiple): p for name, p in holm(p_values).items()}
    return [replace(one, p_holm=adjusted.get((one.name, one.multiple))) for one in compared]


def _slopes(spec: LossStudySpec, cells: Cells) -> list[Slope]:
    """Per seed, a straight line through the differences of all sizes against log2 of the number of blocks."""
    if len(spec.size_names) < 2:
        return []
    models = [spec.arms[spec.name_of(spec.reference, size)].protocol.model for size in spec.size_names]
    depth = np.log2([model.num_layers for model in models])
    if np.ptp(depth) == 0:
        return []
    centred = depth - depth.mean()
    slopes: list[Slope] = []
    for line in spec.lines:
        for multiple in spec.comparison.multiples if line != spec.reference else ():
            per_seed: list[float] = []
            for seed in range(spec.comparison.seeds):
                own = [cells[spec.name_of(line, size), multiple][seed].loss for size in spec.size_names]
                other = [cells[spec.name_of(spec.reference, size), multiple][seed].loss for size in spec.size_names]
                gap = np.subtract(own, other)
                if np.isfinite(gap).all():
                    per_seed.append(float(centred @ gap / (centred @ centred)))
            slopes.append(Slope(line, multiple, Mean(*mean_interval(per_seed))))
    return slopes


def _warnings(
    spec: LossStudySpec, results: Results, runs: Sequence[ComparedRun], compared: Sequence[Compared]
) -> list[str]:
    found = [
        f"the best rate of '{arm}' lies at an end of the swept range; widen learning_rates"
        for arm in tuned_at_an_end(spec, results)
    ]
    found += [
        f"no run of the sweep of '{arm}' ended with a finite loss; its rate is the lowest swept"
        for arm in never_tuned(spec, results)
    ]
    missing = sum(run.outcome is None for run in runs)
    if missing > 0.05 * len(runs):
        found.append(f"{missing} of {len(runs)} runs have no outcome (the machine's fault, not counted)")
    seeds = spec.comparison.seeds
    broken = [f"{one.name} at {one.multiple:g}x ({one.broken} of {seeds})" for one in compared if one.broken]
    if broken:
        found.append(f"broken runs, left out of means and differences: {'; '.join(broken)}")
    return found


def _blocks(folder: Path, run_id: str) -> Blocks:
    return load_texts(folder / "runs" / run_id)
