"""The view of seeds in ``results.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trimtab.section import Finite
from trimtab.stats.agreement import Agreement
from trimtab.stats.components import Components
from trimtab.study.seed_facts import SPIKES
from trimtab.study.seed_groups import SeedGroup


@dataclass(frozen=True, slots=True)
class MapResults:
    """The training map: number of states, BIC for each number of states, and (from, to, runs) of each transition."""

    states: int
    bic: Sequence[float]
    transitions: Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class SeedRunResults:
    """A run of a group.

    Attributes:
        init, data: seeds of the initial weights and of the order of the data.
        score: distance of the final loss from the mean of the group, in standard deviations.
        fork_step: step at which the run leaves the path of the other runs on the training map; None if it does not.
        path: states of the run on the training map.
    """

    id: str
    init: int
    data: int
    final_loss: float
    score: float
    outlier: bool
    spikes: Mapping[str, float]
    fork_step: int | None
    path: Sequence[int] | None


@dataclass(frozen=True, slots=True)
class SeedGroupResults:
    """The runs of an arm at an LR, which differ in their seeds only; losses in nats."""

    arm: str
    lr: Finite
    mean: float
    deviation: float
    outlier_limit: float
    agreement: Agreement | None
    components: Components | None
    map: MapResults | None
    runs: Sequence[SeedRunResults]


def group_results(group: SeedGroup) -> SeedGroupResults:
    """Return a group as plain numbers."""
    training_map = group.map
    return SeedGroupResults(
        arm=group.arm,
        lr=group.learning_rate,
        mean=group.mean,
        deviation=group.deviation,
        outlier_limit=group.limit,
        agreement=group.agreement,
        components=group.components,
        map=None
        if training_map is None
        else MapResults(
            states=training_map.states,
            bic=list(training_map.bic),
            transitions=[[a, b, runs] for (a, b), runs in sorted(training_map.transitions.items())],
        ),
        runs=[
            SeedRunResults(
                id=run.run_id,
                init=run.trial.seed,
                data=run.trial.seed if run.trial.data_seed is None else run.trial.data_seed,
                final_loss=run.loss,
                score=run.score,
                outlier=run.is_outlier,
                spikes=dict(zip(SPIKES, run.facts.spikes, strict=True)),
                fork_step=run.fork_step,
                path=None if training_map is None else training_map.paths[index].tolist(),
            )
            for index, run in enumerate(group.runs)
        ],
    )
