"""The view of seeds, for a study of any kind: what runs that differ in nothing but their seed have in common."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trimtab.run.folder import Outcome
from trimtab.stats.agreement import Agreement, agreement
from trimtab.stats.components import Components, grubbs_limit, outlier_scores, two_way_components
from trimtab.stats.training_map import Fork, MapUnavailableError, TrainingMap, forks, training_map
from trimtab.study.seed_facts import NO_FACTS, SeedFacts, load_facts, read_facts
from trimtab.study.trial import Results, Trial, seed_by_seed

FACTS = "seeds.npz"
LEAST_SEEDS = 5
FAR = 2.0  # standard deviations from the mean beyond which a run counts as an outlier
NOT_READ = 'the weights were not read; set probes.named = ["training_map"]'


@dataclass(frozen=True, slots=True)
class SeedRun:
    """One run of a group.

    Attributes:
        score: standard deviations of its final loss from the mean of its group; infinite if that is not finite.
        fork: where it leaves the others on the training map; None if it does not, or there is no map.
    """

    trial: Trial
    run_id: str
    outcome: Outcome | None
    facts: SeedFacts
    score: float
    fork: Fork | None

    @property
    def name(self) -> str:
        """Its seeds in words."""
        return self.trial.seeds_named

    @property
    def loss(self) -> float:
        """Final held-out loss, nats; nan without one."""
        return self.outcome.final_loss if self.outcome is not None else math.nan

    @property
    def fork_step(self) -> int | None:
        """The step at which it leaves the others on the training map."""
        return None if self.fork is None else int(self.facts.steps[self.fork.checkpoint])

    @property
    def is_outlier(self) -> bool:
        """Whether its final loss is far from the others'."""
        return abs(self.score) > FAR


@dataclass(frozen=True, slots=True)
class SeedGroup:
    """Runs of one arm at one learning rate that differ in their seeds alone.

    Attributes:
        mean, deviation: of the final losses, nats.
        limit: the score that the most extreme of so many normal values exceeds in 5 % of cases.
        agreement: in the likeliest next token; None if predictions were not kept.
        components: of the variance of the final loss by initial weights, order of the data, and the rest; None
            where the seeds are no complete two-way design.
        map: of training; None where there is none, and ``why_no_map`` says why.
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
        """The runs far from the others, farthest first."""
        return sorted((run for run in self.runs if run.is_outlier), key=lambda run: -abs(run.score))


def seed_groups(
    results: Results, names: Mapping[Trial, str], folder: Path, arms: Sequence[str] = ()
) -> list[SeedGroup]:
    """Every arm and rate of a study with at least 5 runs of different seeds.

    Args:
        results: the outcomes of the study.
        names: the run id of each trial.
        folder: of the study, with its runs or with the facts kept of them.
        arms: in the order of the groups; by name if empty.
    """
    kept = load_facts(folder / FACTS) if (folder / FACTS).is_file() else {}
    members: dict[tuple[str, int], list[Trial]] = {}
    for trial in seed_by_seed(results, arms or sorted({trial.arm for trial in results})):
        if results[trial] is not None:
            same = members.setdefault((trial.arm, trial.tick), [])
            # A search may ask for one run in two rounds.
            if (trial.seed, trial.data_seed) not in {(other.seed, other.data_seed) for other in same}:
                same.append(trial)
    found: list[SeedGroup] = []
    for (arm, tick), trials in members.items():
        if len(trials) >= LEAST_SEEDS:
            facts: dict[Trial, SeedFacts] = {}
            for trial in trials:
                run = folder / "runs" / names[trial]
                facts[trial] = read_facts(run) if run.is_dir() else kept.get(names[trial], NO_FACTS)
            found.append(_group(arm, tick, trials, results, names, facts))
    return found


def _group(
    arm: str,
    tick: int,
    trials: Sequence[Trial],
    results: Results,
    names: Mapping[Trial, str],
    facts: Mapping[Trial, SeedFacts],
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
    alike = len({len(one) for one in predictions}) == 1
    return SeedGroup(
        arm=arm,
        tick=tick,
        runs=runs,
        mean=float(sound.mean()) if len(sound) else math.nan,
        deviation=float(sound.std(ddof=1)) if len(sound) > 1 else math.nan,
        limit=grubbs_limit(len(sound)),
        agreement=agreement(predictions) if alike and len(predictions) >= 2 else None,
        components=_components(trials, losses),
        map=mapped,
        why_no_map=why,
    )


def _map(facts: Sequence[SeedFacts]) -> tuple[TrainingMap | None, str]:
    names = {one.names for one in facts if one.names}  # a run that broke before its first reading has none
    if len(names) != 1:
        return None, NOT_READ
    width = len(next(iter(names)))
    try:
        return training_map([one.statistics.reshape(-1, width) for one in facts]), ""
    except MapUnavailableError as error:
        return None, str(error)


def _components(trials: Sequence[Trial], losses: NDArray[np.float64]) -> Components | None:
    """Of a complete table of initial weights by orders of the data."""
    rows = sorted({trial.seed for trial in trials})
    columns = sorted({trial.data_seed for trial in trials if trial.data_seed is not None})
    loss_of = {(trial.seed, trial.data_seed): loss for trial, loss in zip(trials, losses, strict=True)}
    cells = [[loss_of.get((row, column), math.nan) for column in columns] for row in rows]
    table = np.array(cells).reshape(len(rows), len(columns))
    if min(table.shape) < 2 or not np.isfinite(table).all():
        return None
    return two_way_components(table)
