"""Which runs to make next: a coarse sweep, replicates at each best, then rounds of probes at the edges.

A round depends only on the rounds before it, never on what finished first, so a study is the same on any number of
workers, and a resumed study asks for the same runs again.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trimtab.run.folder import Outcome
from trimtab.stats.comparison import clipped_density
from trimtab.stats.intervals import pooled_sd
from trimtab.stats.posterior import EdgeModel, EdgePosterior, Trials, grid_quantiles
from trimtab.study.arms import SIXTEENTH
from trimtab.study.labels import Label, Yardstick, failed, label, reference_never_learned
from trimtab.study.spec import Criterion, StudySpec

FIRST_PROBE_SEED = 1000
REPLICATE_REACH = 0.5  # nats from the best within which replicates tell seed noise from failure


@dataclass(frozen=True, slots=True, order=True)
class Trial:
    """One planned run; its LR is 2^(tick/16).

    Attributes:
        data_seed: of the order of the data, where it has one of its own; None takes ``seed`` for everything.
    """

    round: int
    arm: str
    tick: int
    seed: int
    data_seed: int | None = None

    @property
    def learning_rate(self) -> float:
        """Peak LR."""
        return 2.0 ** (self.tick / SIXTEENTH)


Results = Mapping[Trial, Outcome | None]


@dataclass(frozen=True, slots=True)
class Best:
    """An arm's lowest mean final loss at one LR of phase 1; nan and the lowest LR where nothing was finite."""

    loss: float
    tick: int


@dataclass(frozen=True, slots=True)
class PhaseOne:
    """What phase 1 fixes for good.

    Attributes:
        seed_sd: spread of final losses between seeds at one LR, pooled over arms, in nats; nan if not measured.
        unclear: arms whose failures are not one edge in LR.
    """

    best: Mapping[str, Best]
    reference_loss: float
    unigram_entropy: float
    seed_sd: float
    unclear: tuple[str, ...]

    def yardstick(self, arm: str, *, usable: bool = False) -> Yardstick:
        """What the runs of an arm are measured against."""
        own = self.best[arm]
        loss = self.reference_loss if usable else own.loss
        return Yardstick(loss if math.isfinite(loss) else math.inf, own.tick, self.reference_loss)

    @property
    def learned(self) -> bool:
        """Whether the reference got below unigram entropy."""
        return not reference_never_learned(self.reference_loss, self.unigram_entropy)


def rounds(spec: StudySpec) -> Generator[Sequence[Trial], Results, None]:
    """Yield the trials of each round; send the results of all rounds so far."""
    sweep = spec.learning_rates.sweep()
    first = [
        Trial(0, arm, tick, seed) for arm in spec.arms for seed in range(spec.search.sweep_seeds) for tick in sweep
    ]
    results = yield first
    if spec.search.replicates:
        best = {arm: best_of(arm, results) for arm in spec.arms}
        seeds = range(spec.search.sweep_seeds, spec.search.sweep_seeds + spec.search.replicates)
        results = yield [Trial(1, arm, best[arm].tick, seed) for arm in spec.arms for seed in seeds]
    phase = phase_one(spec, results)
    if not phase.learned:
        return
    if spec.search.design == "grid":
        further = _grid(spec, sweep)
        if further:
            yield further
        return
    model = EdgeModel(sweep[0] / SIXTEENTH, sweep[-1] / SIXTEENTH)
    number = 2
    while True:
        probes = _probes(spec, phase, model, results, number)
        if not probes:
            return
        results = yield probes
        number += 1


def round_name(number: int) -> str:
    """'sweep', 'replicates', 'probes 1', ..."""
    return {0: "sweep", 1: "replicates"}.get(number, f"probes {number - 1}")


def phase_one(spec: StudySpec, results: Results) -> PhaseOne:
    """What the sweep and the replicates fix; runs of later rounds are ignored."""
    early = {trial: outcome for trial, outcome in results.items() if trial.round <= 1}
    best = {arm: best_of(arm, early) for arm in spec.arms}
    reference = best[spec.reference].loss
    own = (early[trial] for trial in sorted(early) if trial.arm == spec.reference)
    entropy = next((outcome.unigram_entropy for outcome in own if outcome is not None), math.nan)
    phase = PhaseOne(best, reference, entropy, _seed_sd(early, best), ())
    unclear = [arm for arm in spec.arms if not one_edge(arm, early, phase.yardstick(arm), spec.criterion)]
    return PhaseOne(best, reference, phase.unigram_entropy, phase.seed_sd, tuple(unclear))


def best_of(arm: str, results: Results) -> Best:
    """Lowest mean final loss over seeds at one LR; an LR with a broken seed does not count."""
    by_tick = _finals(arm, results)
    means = {tick: sum(v) / len(v) for tick, v in by_tick.items() if all(math.isfinite(loss) for loss in v)}
    if not means:
        return Best(math.nan, min(by_tick, default=0))
    tick = min(means, key=lambda tick: (means[tick], tick))
    return Best(means[tick], tick)


def one_edge(
    arm: str, results: Results, yardstick: Yardstick, criterion: Criterion, margin: float | None = None
) -> bool:
    """Whether, going up in LR, an arm's first sweep (seed by seed) fails once and for good."""
    seeds = sorted({trial.seed for trial in results if trial.arm == arm and trial.round == 0})
    for seed in seeds:
        sequence: list[bool] = []
        for trial in sorted(t for t in results if t.arm == arm and t.seed == seed and t.round == 0):
            one = label(results[trial], trial.tick, yardstick, criterion, margin or criterion.margin)
            failure = failed(one)
            if failure is not None:
                sequence.append(failure)
        if sequence != sorted(sequence):
            return False
    return True


def edge_trials(arm: str, results: Results, yardstick: Yardstick, criterion: Criterion, margin: float) -> Trials:
    """The evidence on one arm's edge."""
    return trials_of(
        [
            (trial, label(results[trial], trial.tick, yardstick, criterion, margin))
            for trial in sorted(results)
            if trial.arm == arm
        ]
    )


def trials_of(labelled: Sequence[tuple[Trial, Label]], *, strict: bool = False) -> Trials:
    """Labels as evidence; those that are evidence of nothing are left out."""
    pairs = [(trial.tick / SIXTEENTH, failed(one, strict=strict)) for trial, one in labelled]
    return Trials.of([(x, failure) for x, failure in pairs if failure is not None])


def interval_width(posterior: EdgePosterior) -> float:
    """Width of the 95 % interval of LR50 inside the tested range, in octaves."""
    low, high = grid_quantiles(posterior.x50, clipped_density(posterior, 0.5), (0.025, 0.975))
    return float(high - low)


def propose(posterior: EdgePosterior, num_probes: int) -> list[int]:
    """Distinct ticks at even quantiles of LR50, inside the tested range."""
    lowest, highest = round(posterior.low * SIXTEENTH), round(posterior.high * SIXTEENTH)
    levels = [(i + 1) / (num_probes + 1) for i in range(num_probes)]
    wanted = grid_quantiles(posterior.x50, clipped_density(posterior, 0.5), levels)
    chosen: list[int] = []
    for x in wanted:
        tick = int(np.clip(round(float(x) * SIXTEENTH), lowest, highest))
        free = (tick + offset for size in range(highest - lowest + 1) for offset in (size, -size))
        chosen.append(next(t for t in free if lowest <= t <= highest and t not in chosen))
    return sorted(chosen)


def _probes(spec: StudySpec, phase: PhaseOne, model: EdgeModel, results: Results, number: int) -> list[Trial]:
    search = spec.search
    evidence = {
        arm: edge_trials(arm, results, phase.yardstick(arm), spec.criterion, spec.criterion.margin)
        for arm in spec.arms
        if arm not in phase.unclear
    }
    posteriors = model.fit(evidence)
    probes: list[Trial] = []
    for arm, posterior in posteriors.items():
        spent = sum(trial.arm == arm for trial in results)
        # Whole rounds only, so that a study extended by a larger cap asks for the same runs again.
        if spent + search.probes_per_round > search.most_runs or interval_width(posterior) < search.enough:
            continue
        used = sum(trial.arm == arm and trial.round >= 2 for trial in results)
        ticks = propose(posterior, search.probes_per_round)
        probes += [Trial(number, arm, tick, FIRST_PROBE_SEED + used + i) for i, tick in enumerate(ticks)]
    return probes


def _grid(spec: StudySpec, sweep: Sequence[int]) -> list[Trial]:
    left = spec.search.most_runs - spec.first_runs() // len(spec.arms)
    return [
        Trial(2, arm, tick, FIRST_PROBE_SEED + seed)
        for arm in spec.arms
        for seed in range(left // len(sweep))
        for tick in sweep
    ]


def _finals(arm: str, results: Results) -> dict[int, list[float]]:
    finals: dict[int, list[float]] = {}
    for trial in sorted(results):
        outcome = results[trial]
        if trial.arm == arm and outcome is not None:
            finals.setdefault(trial.tick, []).append(outcome.final_loss)
    return finals


def _seed_sd(results: Results, best: Mapping[str, Best]) -> float:
    groups = [
        [loss for loss in losses if loss <= best[arm].loss + REPLICATE_REACH]
        for arm in best
        for losses in _finals(arm, results).values()
    ]
    return pooled_sd([group for group in groups if len(group) > 1])
