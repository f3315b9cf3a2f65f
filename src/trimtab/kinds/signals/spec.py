"""What a study of signals is: arms, perhaps at several sizes, on a grid of learning rates and seeds, all watched."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from typing_extensions import override

from trimtab.run.spec import TrainingProtocol
from trimtab.study.settings import MOST_TRIALS, Criterion, LearningRates
from trimtab.study.specification import FREE, StudySpec
from trimtab.study.trial import Tick

WATCHED = ("tev", "variance")
LEAST_READINGS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class SignalsConfig:
    """How often each arm meets each learning rate, and when the signals are asked.

    Attributes:
        seeds: of every arm at every rate, the same for all.
        fractions: of the run, at which the end is predicted from what was seen until then.
        frequent_share: of the training text that the frequent tokens make up; the others are rare.

    Raises:
        ValueError: if there are fewer than 2 seeds, or a number does not lie between 0 and 1.
    """

    seeds: int = 4
    fractions: tuple[float, ...] = (0.1, 0.25, 0.5)
    frequent_share: float = 0.9

    def __post_init__(self) -> None:
        if self.seeds < 2:
            raise ValueError(f"seeds must be at least 2, got {self.seeds}: what a seed alone does must be told apart")
        if not self.fractions or not all(0 < fraction < 1 for fraction in self.fractions):
            raise ValueError(f"fractions must lie between 0 and 1, got {list(self.fractions)}")
        if not 0 < self.frequent_share < 1:
            raise ValueError(f"frequent_share must lie between 0 and 1, got {self.frequent_share}")


@dataclass(frozen=True, kw_only=True, slots=True)
class SignalsSpec(StudySpec):
    """A study of signals, completely.

    Raises:
        ValueError: if an arm is not watched as it must be, or too many runs are asked for.
    """

    kind: ClassVar[str] = "signals"
    takes_sizes: ClassVar[bool] = True

    learning_rates: LearningRates
    criterion: Criterion = field(default_factory=Criterion)
    signals: SignalsConfig = field(default_factory=SignalsConfig, metadata=FREE)

    def __post_init__(self) -> None:
        for name, arm in self.arms.items():
            _check(name, arm.protocol)
        if self.most_runs() > MOST_TRIALS:
            raise ValueError(f"signals: {self.most_runs()} runs are asked for, more than {MOST_TRIALS}")

    def rates_of(self, arm: str) -> LearningRates:
        """The learning rates of an arm."""
        return self.arms[arm].learning_rates or self.learning_rates

    @override
    def ticks(self) -> tuple[Tick, ...]:
        return tuple(sorted({tick for arm in self.arms for tick in self.rates_of(arm).sweep()}))

    @override
    def first_runs(self) -> int:
        return sum(len(self.rates_of(arm).sweep()) for arm in self.arms) * self.signals.seeds

    @override
    def most_runs(self) -> int:
        return self.first_runs()


def _check(name: str, protocol: TrainingProtocol) -> None:
    preset = protocol.probes.probes()
    training = protocol.training
    read = {probe.slug for probe in preset.probes} if preset is not None else set[str]()
    missing = [slug for slug in WATCHED if slug not in read]
    if preset is None or missing:
        raise ValueError(f"probes: '{name}' does not read {' and '.join(missing)}; set probes.named = {list(WATCHED)}")
    if training.accumulate < 2:
        raise ValueError(
            f"training.accumulate: gradient variance takes at least 2 micro-batches a step, '{name}' has "
            f"{training.accumulate}"
        )
    every = protocol.probes.every or preset.every
    if training.steps // every < LEAST_READINGS:
        raise ValueError(
            f"probes.every: {training.steps // every} readings of '{name}' are too few, at least {LEAST_READINGS} are "
            "needed; lower it or train longer"
        )
