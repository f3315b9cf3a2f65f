"""The view of seeds, for a study of any kind: a comparison of runs that differ only in their seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trimtab.run.folder import Outcome
from trimtab.run.kept import Kept
from trimtab.stats.agreement import Agreement, agreement
from trimtab.stats.components import Components, grubbs_limit, outlier_scores, two_way_components
from trimtab.stats.training_map import Fork, MapUnavailableError, TrainingMap, forks, training_map
from trimtab.study.seed_facts import FACTS, SeedFacts, find_facts
from trimtab.study.trial import Results, Trial, seed_by_seed

LEAST_SEEDS = 5
FAR = 2.0  # a run is an outlier beyond this number of standard deviations from the mean
NOT_READ = 'the weights were not read; set probes.named = ["training_map"]'


@dataclass(frozen=True, slots=True)
class SeedRun:
    """One run of a group.

    Attributes:
        score: final loss minus the mean of the group, in standard deviations; infinite if the loss is not finite.
        fork: where the run leaves the other runs on the training map; None if it does not, or there is no map.
    """

    trial: Trial
    run_id: str
    outcome: Outcome | None
    facts: SeedFacts
    score: float
    fork: Fork | None

    @property
    def name(self) -> str:
        """The seeds in words."""
        return self.trial.seeds_named

    @property
    def loss(self) -> float:
        """Final held-out loss, in nats; nan if the run has no outcome."""
        return self.outcome.final_loss if self.outcome is not None else math.nan

    @property
    def fork_step(self) -> int | None:
        """The step at which the run leaves the other runs on the training map; None if it does not."""
        return None if self.fork is None else int(self.facts.steps[self.fork.checkpoint])

    @property
    def is_outlier(self) -> bool:
        """Whether ``score`` is beyond 2 standard deviations."""
        return abs(self.score) > FAR


@dataclass(frozen=True, slots=True)
class SeedGroup:
    """Runs of one arm at one learning rate that differ only in their seeds.

    Attributes:
        mean, deviation: mean and standard deviation of the final losses, in nats.
        limit: the score that the most extreme of as many normal values exceeds in 5 % of cases.
        agreement: agreement in the most likely next token; None if predictions were not stored.
        components: components of the variance of the final loss: initial weights, order of the data, and residual,
            which repeats divide into interaction and numerics; None if the seeds are not a complete two-way design.
        map: the training map; None if there is none.
        why_no_map: the reason why there is no training map; "" if there is one.
    """

    arm: str
    tick: int
    runs: Sequence[SeedRun]
    mean: float
    deviation: float
    limit: float
    agreement: Agreement | None
    components: Components | None
    map: TrainingMap | None
    why_no_map: str

    @property
    def learning_rate(self) -> float:
        """Peak LR."""
        return self.runs[0].trial.learning_rate

    @property
    def outliers(self) -> list[SeedRun]:
        """The outliers, in descending order of the absolute score."""
        return sorted((run for run in self.runs if run.is_outlier), key=lambda run: -abs(run.score))


def seed_groups(
    results: Results, names: Mapping[Trial, str], folder: Path, arms: Sequence[str] = ()
) -> list[SeedGroup]:
    """A group for every arm and learning rate of a study that has at least 5 runs with different seeds.

    Args:
        results: the outcomes of the study.
        names: the run id of each trial.
        folder: the study folder, with its run folders or with the facts that were saved from them.
        arms: the order of the groups; alphabetical if empty.
    """
    kept = Kept(folder, FACTS)
    members: dict[tuple[str, int], list[Trial]] = {}
    repeats: dict[tuple[str, int], list[Trial]] = {}
    for trial in seed_by_seed(results, arms or sorted({trial.arm for trial in results})):
        if results[trial] is not None and trial.repeat:
            repeats.setdefault((trial.arm, trial.tick), []).append(trial)
        elif results[trial] is not None:
            same = members.setdefault((trial.arm, trial.tick), [])
            # A search may request the same run in two rounds.
            if (trial.seed, trial.data_seed) not in {(other.seed, other.data_seed) for other in same}:
                same.append(trial)
    groups: list[SeedGroup] = []
    for (arm, tick), trials in members.items():
        if len(trials) >= LEAST_SEEDS:
            facts = {trial: find_facts(kept, names[trial]) for trial in trials}
            repeated = _repeated(repeats.get((arm, tick), []), trials, results)
            groups.append(_group(arm, tick, trials, results, names, facts, repeated))
    return groups


def _group(
    arm: str,
    tick: int,
    trials: Sequence[Trial],
    results: Results,
    names: Mapping[Trial, str],
    facts: Mapping[Trial, SeedFacts],
    repeated: Sequence[tuple[float, float]],
) -> SeedGroup:
    outcomes = [results[trial] for trial in trials]
    losses = np.array([outcome.final_loss if outcome is not None else math.nan for outcome in outcomes])
    scores = outlier_scores(losses)
    mapped, why = _map([facts[trial] for trial in trials])
    fork_of = {fork.run: fork for fork in forks(mapped)} if mapped is not None else {}
    runs = [
        SeedRun(trial, names[trial], results[trial], facts[trial], float(scores[index]), fork_of.get(index))
        for index, trial in enumerate(trials)
    ]
    sound = losses[np.isfinite(losses)]
    predictions = [run.facts.predictions for run in runs if run.facts.predictions.size]
    alike = len({len(tokens) for tokens in predictions}) == 1
    return SeedGroup(
        arm=arm,
        tick=tick,
        runs=runs,
        mean=float(sound.mean()) if len(sound) else math.nan,
        deviation=float(sound.std(ddof=1)) if len(sound) > 1 else math.nan,
        limit=grubbs_limit(len(sound)),
        agreement=agreement(predictions) if alike and len(predictions) >= 2 else None,
        components=_components(trials, losses, repeated),
        map=mapped,
        why_no_map=why,
    )


def _map(facts: Sequence[SeedFacts]) -> tuple[TrainingMap | None, str]:
    names = {run.names for run in facts if run.names}  # empty if a run broke before its first reading
    if len(names) != 1:
        return None, NOT_READ
    width = len(next(iter(names)))
    try:
        return training_map([run.statistics.reshape(-1, width) for run in facts]), ""
    except MapUnavailableError as error:
        return None, str(error)


def _repeated(repeats: Sequence[Trial], trials: Sequence[Trial], results: Results) -> list[tuple[float, float]]:
    """The final losses of each run that was repeated and of its repeat; pairs that are not finite are left out."""
    first = {(trial.seed, trial.data_seed): results[trial] for trial in trials}
    pairs = [(first.get((trial.seed, trial.data_seed)), results[trial]) for trial in repeats]
    losses = [(one.final_loss, other.final_loss) for one, other in pairs if one is not None and other is not None]
    return [pair for pair in losses if all(math.isfinite(loss) for loss in pair)]


def _components(
    trials: Sequence[Trial], losses: NDArray[np.float64], repeated: Sequence[tuple[float, float]]
) -> Components | None:
    """Variance components, if the trials are a complete table of initial weights x orders of the data."""
    rows = sorted({trial.seed for trial in trials})
    columns = sorted({trial.data_seed for trial in trials if trial.data_seed is not None})
    loss_of = {(trial.seed, trial.data_seed): loss for trial, loss in zip(trials, losses, strict=True)}
    cells = [[loss_of.get((row, column), math.nan) for column in columns] for row in rows]
    table = np.array(cells).reshape(len(rows), len(columns))
    if min(table.shape) < 2 or not np.isfinite(table).all():
        return None
    return two_way_components(table, repeated)
