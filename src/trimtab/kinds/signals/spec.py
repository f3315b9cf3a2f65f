"""The specification of a study of signals: arms, optional sizes, a grid of learning rates and seeds, and probes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from typing_extensions import override

from trimtab.run.spec import TrainingProtocol
from trimtab.study.settings import MOST_TRIALS, Criterion, LearningRates
from trimtab.study.specification import FREE, StudySpec
from trimtab.study.trial import Tick

WATCHED = ("tev", "variance")


@dataclass(frozen=True, kw_only=True, slots=True)
class SignalsConfig:
    """The number of seeds, and the fractions of a run at which its end is predicted.

    Attributes:
        seeds: number of seeds of every arm at every learning rate; all arms use the same seeds.
        fractions: fractions of the run; at each, the end of the run is predicted from the signals until then.
        from_fraction: fraction of the run from which on signals are correlated. Both signals change fast at the start
            of every run, and this common transient is no relation between them.
        frequent_share: share of the training text that the frequent tokens make up; the other tokens are rare.

    Raises:
        ValueError: if there are fewer than 2 seeds, or a number is out of range.
    """

    seeds: int = 4
    fractions: tuple[float, ...] = (0.1, 0.25, 0.5)
    from_fraction: float = 0.25
    frequent_share: float = 0.9

    def __post_init__(self) -> None:
        if self.seeds < 2:
            raise ValueError(
                f"seeds must be at least 2, got {self.seeds}: the variation between seeds must be measured"
            )
        if not self.fractions or not all(0 < fraction < 1 for fraction in self.fractions):
            raise ValueError(f"fractions must lie between 0 and 1, got {list(self.fractions)}")
        if not 0 <= self.from_fraction <= 1:
            raise ValueError(f"from_fraction must lie between 0 and 1, got {self.from_fraction}")
        if not 0 < self.frequent_share < 1:
            raise ValueError(f"frequent_share must lie between 0 and 1, got {self.frequent_share}")


@dataclass(frozen=True, kw_only=True, slots=True)
class SignalsSpec(StudySpec):
    """The complete specification of a study of signals.

    Raises:
        ValueError: if an arm lacks probes, readings or micro-batches, or there are more than 10,000 runs.
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
            raise ValueError(f"signals: {self.most_runs()} runs are more than the {MOST_TRIALS} that a study can make")

    def rates_of(self, arm: str) -> LearningRates:
        """Return the range of learning rates of an arm."""
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
            f"training.accumulate: gradient variance requires at least 2 micro-batches per step, '{name}' has "
            f"{training.accumulate}"
        )
    every = protocol.probes.every or preset.every
    if training.steps < every:
        raise ValueError(
            f"probes.every: '{name}' would have no reading after the start; lower probes.every or raise training.steps"
        )
