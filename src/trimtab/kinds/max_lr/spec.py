"""The specification of a study of limits: arms, a range of learning rates, a criterion, and the search."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from typing_extensions import override

from trimtab.study.bracket import MOST_EXTENSIONS
from trimtab.study.settings import MOST_TRIALS, Criterion, LearningRates
from trimtab.study.specification import FREE, StudySpec
from trimtab.study.trial import Tick

LEAST = {
    "sweep_seeds": 1,
    "replicates": 0,
    "extensions": 0,
    "probes_per_round": 1,
    "most_runs": 1,
    "stride": 1,
    "confirm": 0,
}
CONFIRMATION_CELLS = 8  # two edges, two arms, two rates
EdgeName = Literal["quality", "collapse"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig:
    """The budget of the search. Phase 1 is the sweep and the replicates; phase 2 probes each limit in rounds.

    Attributes:
        design: ``adaptive`` places probes where the posterior is uncertain; ``grid`` repeats the sweep on more seeds.
        sweep_seeds: number of seeds of the coarse sweep.
        replicates: number of further seeds at the best LR of each arm in the sweep; they make its best loss more
            precise and measure the noise between seeds.
        extensions: largest number of rates by which the sweep goes on beyond each end of the requested range, until the
            best rate of the arm is bracketed and, upwards, until a run collapses. 0 keeps the requested range.
        probes_per_round: number of probes of an unfinished edge in each round; ignored by ``grid``.
        most_runs: largest number of runs of an arm over all phases; the stop rule counts runs, never time. The sweep
            and its extensions are made even if they are more.
        share_collapse: share of the runs after phase 1 that goes to the edge of collapse; the rest goes to the edge of
            quality. An edge that is finished leaves its rest to the other.
        enough: an edge is finished when its 95 % interval of LR50 is narrower than this, in octaves.
        stride: the sweep begins with every ``stride``-th of its rates and the highest; the rates beside the best are
            added. A larger number saves runs at rates that are far from every edge.
        evidence: what the limits of collapse are estimated from: ``labels`` count on which side of the line a final
            loss lies, ``losses`` also by how much. The edge of quality is always estimated from labels: on flat slopes
            the intervals of losses cover too little.
        confirm: number of unseen seeds with which the limits of the winner and the reference are checked at the end, an
            octave below and an octave above; 0 leaves the check out. These runs are beyond ``most_runs``.

    Raises:
        ValueError: if a count or a share is out of range.
    """

    design: Literal["adaptive", "grid"] = "adaptive"
    sweep_seeds: int = 1
    replicates: int = 2
    extensions: int = MOST_EXTENSIONS
    probes_per_round: int = 3
    most_runs: int = field(default=40, metadata=FREE)
    share_collapse: float = 0.5
    enough: float = field(default=0.7, metadata=FREE)
    stride: int = 1
    evidence: Literal["labels", "losses"] = "labels"
    confirm: int = field(default=0, metadata=FREE)

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            if not least <= getattr(self, name) <= MOST_TRIALS:
                raise ValueError(f"{name} must lie between {least} and {MOST_TRIALS}, got {getattr(self, name)}")
        if not 0 < self.enough < math.inf:
            raise ValueError(f"enough must be positive and finite, got {self.enough}")
        if not 0 <= self.share_collapse <= 1:
            raise ValueError(f"share_collapse must lie between 0 and 1, got {self.share_collapse}")

    @property
    def graded(self) -> bool:
        """Whether the distance of a loss from the line counts too."""
        return self.evidence == "losses"


@dataclass(frozen=True, kw_only=True, slots=True)
class MoversConfig:
    """The comparison of failing with sound runs at the same rate, for studies with probes.

    Attributes:
        edge: the edge at which a run fails.
        seeds: number of unseen seeds at LR50 of every arm at this edge; 0 makes no runs for the comparison. If fewer
            than a quarter or more than three quarters of them fail, the rate moves by a quarter octave once. These runs
            are beyond ``most_runs`` and no evidence for the limits.
        above: number of unseen seeds an octave above, which show how much of a difference is that of the rate.
        other_rates: whether failing runs may be compared with sound runs of other rates if no rate has both.

    Raises:
        ValueError: if a count is out of range.
    """

    edge: EdgeName = "collapse"
    seeds: int = field(default=0, metadata=FREE)
    above: int = field(default=0, metadata=FREE)
    other_rates: bool = field(default=False, metadata=FREE)

    def __post_init__(self) -> None:
        for name in ("seeds", "above"):
            if not 0 <= getattr(self, name) <= MOST_TRIALS:
                raise ValueError(f"{name} must lie between 0 and {MOST_TRIALS}, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class MaxLrSpec(StudySpec):
    """The complete specification of a study of limits.

    Attributes:
        learning_rates: the requested range of every arm that does not set its range.
        reference: the arm with which the others are compared; its best loss defines which runs are usable.

    Raises:
        ValueError: if the reference is not an arm, or the search asks for more than 10,000 trials.
    """

    kind: ClassVar[str] = "max_lr"

    learning_rates: LearningRates
    reference: str = "baseline"
    criterion: Criterion = field(default_factory=Criterion)
    search: SearchConfig = field(default_factory=SearchConfig)
    movers: MoversConfig = field(default_factory=MoversConfig)

    def __post_init__(self) -> None:
        if self.reference not in self.lines:
            raise ValueError(f"reference: '{self.reference}' is not an arm; arms are {', '.join(self.lines)}")
        for arm in self.arms:
            rates = self.rates_of(arm)
            room = rates.highest - rates.lowest + 1
            if room == 1:
                raise ValueError(f"learning_rates: a limit is searched in a range, and '{arm}' has one rate")
            if 2 * self.search.probes_per_round > room:
                raise ValueError(
                    f"search.probes_per_round {self.search.probes_per_round} at two edges is more than the {room} "
                    f"rates in the tested range of '{arm}'"
                )
        most = self.most_runs()
        if most > MOST_TRIALS:
            raise ValueError(
                f"search: {most} trials are more than the {MOST_TRIALS} that a study can make; reduce arms or most_runs"
            )

    def rates_of(self, arm: str) -> LearningRates:
        """Return the range that is requested for an arm; the sweep may go beyond it."""
        return self.arms[arm].learning_rates or self.learning_rates

    def first_rates_of(self, arm: str) -> tuple[Tick, ...]:
        """Return the rates with which the sweep of an arm begins."""
        rates = self.rates_of(arm).sweep()
        return tuple(sorted({*rates[:: self.search.stride], rates[-1]}))

    def comparable(self, arm: str) -> bool:
        """Whether an arm has the optimizer of the reference; otherwise their learning rates have different units."""
        first, second = (self.arms[name] for name in (arm, self.reference))
        same_code = first.code.optimizer is second.code.optimizer and _optimizer_named(first) == _optimizer_named(
            second
        )
        return same_code and type(first.protocol.optimizer) is type(second.protocol.optimizer)

    @override
    def ticks(self) -> tuple[Tick, ...]:
        return tuple(sorted({tick for arm in self.arms for tick in self.rates_of(arm).sweep()}))

    @override
    def first_runs(self) -> int:
        return sum(self.first_runs_of(arm) for arm in self.arms)

    def first_runs_of(self, arm: str) -> int:
        """Return the number of runs of phase 1 of an arm."""
        return len(self.first_rates_of(arm)) * self.search.sweep_seeds + self.search.replicates

    @override
    def most_runs(self) -> int:
        further = 2 * self.search.extensions * self.search.sweep_seeds
        confirmation = CONFIRMATION_CELLS * self.search.confirm
        compared = (2 * self.movers.seeds + self.movers.above) * len(self.arms)
        swept = {arm: len(self.rates_of(arm).sweep()) * self.search.sweep_seeds for arm in self.arms}
        first = {arm: runs + self.search.replicates + further for arm, runs in swept.items()}
        searched = sum(max(first[arm], self.search.most_runs) for arm in self.arms)
        return searched + confirmation + compared


def _optimizer_named(arm: object) -> str:
    return dict(getattr(arm, "code_names", ())).get("optimizer", "")
