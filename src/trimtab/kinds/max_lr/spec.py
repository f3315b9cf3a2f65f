"""What a study of limits is: arms, a range of learning rates, a criterion, and how runs are spent."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from typing_extensions import override

from trimtab.study.settings import MOST_TRIALS, Criterion, LearningRates
from trimtab.study.specification import FREE, StudySpec
from trimtab.study.trial import Tick


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig:
    """How runs are spent. Phase 1 is the sweep and the replicates; phase 2 probes each edge in rounds.

    Attributes:
        design: ``adaptive`` probes where the posterior is uncertain; ``grid`` repeats the sweep with more seeds.
        sweep_seeds: seeds of the coarse sweep.
        replicates: further seeds at each arm's best LR of the sweep: they steady its best loss and measure seed noise.
        probes_per_round: of each open arm; with ``grid`` they are seeds of the whole sweep.
        most_runs: of one arm, all phases together; the stop rule counts runs, never time.
        enough: width of the 95 % interval of LR50 at which an arm is closed, in octaves.

    Raises:
        ValueError: if a count is out of range.
    """

    design: Literal["adaptive", "grid"] = "adaptive"
    sweep_seeds: int = 1
    replicates: int = 2
    probes_per_round: int = 3
    most_runs: int = field(default=40, metadata=FREE)
    enough: float = field(default=0.7, metadata=FREE)

    def __post_init__(self) -> None:
        for name, least in (("sweep_seeds", 1), ("replicates", 0), ("probes_per_round", 1), ("most_runs", 1)):
            if not least <= getattr(self, name) <= MOST_TRIALS:
                raise ValueError(f"{name} must lie between {least} and {MOST_TRIALS}, got {getattr(self, name)}")
        if not 0 < self.enough < math.inf:
            raise ValueError(f"enough must be positive and finite, got {self.enough}")


@dataclass(frozen=True, kw_only=True, slots=True)
class MaxLrSpec(StudySpec):
    """A study of limits, completely.

    Attributes:
        learning_rates: the tested range, of every arm that has none of its own.
        reference: the arm that the others are compared with, and whose best loss says what is usable.

    Raises:
        ValueError: if the reference is not an arm, or more than 10,000 trials are asked for.
    """

    kind: ClassVar[str] = "max_lr"

    learning_rates: LearningRates
    reference: str = "baseline"
    criterion: Criterion = field(default_factory=Criterion)
    search: SearchConfig = field(default_factory=SearchConfig)

    def __post_init__(self) -> None:
        if self.reference not in self.lines:
            raise ValueError(f"reference: '{self.reference}' is not an arm; arms are {', '.join(self.lines)}")
        for arm in self.arms:
            rates = self.rates_of(arm)
            room = rates.highest - rates.lowest + 1
            if self.search.probes_per_round > room:
                raise ValueError(
                    f"search.probes_per_round {self.search.probes_per_round} is more than the {room} rates there are"
                )
        most = self.most_runs()
        if most > MOST_TRIALS:
            raise ValueError(f"search: up to {most} trials are asked for, more than {MOST_TRIALS}")

    def rates_of(self, arm: str) -> LearningRates:
        """The tested range of an arm."""
        return self.arms[arm].learning_rates or self.learning_rates

    def comparable(self, arm: str) -> bool:
        """Whether the learning rates of an arm are in the same unit as the reference's: those of one optimizer."""
        own, other = (self.arms[name] for name in (arm, self.reference))
        same_code = own.code.optimizer is other.code.optimizer and _optimizer_named(own) == _optimizer_named(other)
        return same_code and type(own.protocol.optimizer) is type(other.protocol.optimizer)

    @override
    def ticks(self) -> tuple[Tick, ...]:
        return tuple(sorted({tick for arm in self.arms for tick in self.rates_of(arm).sweep()}))

    @override
    def first_runs(self) -> int:
        return sum(self.first_runs_of(arm) for arm in self.arms)

    def first_runs_of(self, arm: str) -> int:
        """Runs of phase 1 of one arm."""
        return len(self.rates_of(arm).sweep()) * self.search.sweep_seeds + self.search.replicates

    @override
    def most_runs(self) -> int:
        return sum(max(self.first_runs_of(arm), self.search.most_runs) for arm in self.arms)


def _optimizer_named(arm: object) -> str:
    return dict(getattr(arm, "code_names", ())).get("optimizer", "")
