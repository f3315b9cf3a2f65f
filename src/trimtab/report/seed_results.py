"""The view of seeds as plain numbers."""

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
    """The training map: number of states, BIC by number of states, and (from, to, runs) of each transition."""

    states: int
    bic: Sequence[float]
    transitions: Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class SeedRunResults:
    """One run of a group.

    Attributes:
        init, data: seeds of the initial weights and of the order of the data.
        score: standard deviations of the final loss from the mean of the group.
        fork_step: where it leaves the others on the training map; None if it does not.
        path: its states on the training map.
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
    """Runs of one arm at one LR that differ in nothing but their seeds; losses in nats."""

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
    """One group."""
    found = group.map
    return SeedGroupResults(
        arm=group.arm,
        lr=group.learning_rate,
        mean=group.mean,
        deviation=group.deviation,
        outlier_limit=group.limit,
        agreement=group.agreement,
        components=group.components,
        map=None
        if found is None
        else MapResults(
            states=found.states,
            bic=list(found.bic),
            transitions=[[a, b, runs] for (a, b), runs in sorted(found.transitions.items())],
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
                path=None if found is None else found.paths[index].tolist(),
            )
            for index, run in enumerate(group.runs)
        ],
    )
