"""What a study of signals is: arms, perhaps at several sizes, on a grid of learning rates and seeds, all watched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, cast

from trimtab.config import ConfigError, Raw, to_plain
from trimtab.run.reading import read_protocol, reader
from trimtab.run.spec import SECTIONS, ModelBuilder, OptimizerBuilder, Protocol
from trimtab.study.arms import Arm, arm_table, protocol_table, read_arms
from trimtab.study.sizes import Place, arms_at_sizes, read_sizes
from trimtab.study.spec import MOST_TRIALS, Criterion, LearningRates

KIND = "signals"
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
class SignalsSpec:
    """A study of signals, completely.

    Attributes:
        arms: every line at every size, by a name of both.
        places: the same by line and size.
        lines: the arms of the file, as they are before a size is laid over them.
        sizes: by name, what each lays over the shared sections; empty if all arms have one size.

    Raises:
        ValueError: if an arm is not watched as it must be, or too many runs are asked for.
    """

    kind: ClassVar[str] = KIND
    name: str
    arms: Mapping[str, Arm]
    places: Mapping[str, Place]
    lines: Mapping[str, Arm]
    sizes: Mapping[str, Raw]
    learning_rates: LearningRates
    protocol: Protocol = field(default_factory=Protocol)
    criterion: Criterion = field(default_factory=Criterion)
    signals: SignalsConfig = field(default_factory=SignalsConfig)

    def __post_init__(self) -> None:
        for name, arm in self.arms.items():
            _check(name, arm.protocol)
        if self.most_runs() > MOST_TRIALS:
            raise ValueError(f"signals: {self.most_runs()} runs are asked for, more than {MOST_TRIALS}")

    def ticks(self) -> tuple[int, ...]:
        """The learning rates, in sixteenths of an octave."""
        return self.learning_rates.sweep()

    def first_runs(self) -> int:
        """The number of runs: there is one round."""
        return len(self.arms) * len(self.ticks()) * self.signals.seeds

    def most_runs(self) -> int:
        """The number of all runs."""
        return self.first_runs()

    def fixed(self) -> Raw:
        """What a folder of results must share: all but the name, the arms, the sizes and how many seeds there are."""
        return cast(Raw, to_plain(self.protocol)) | {
            "kind": KIND,
            "learning_rates": to_plain(self.learning_rates),
            "criterion": to_plain(self.criterion),
        }

    def table(self) -> Raw:
        """The study as the TOML that ``read_signals_study`` reads, defaults included."""
        shared = protocol_table(self.protocol)
        return (
            {"kind": KIND, "name": self.name}
            | shared
            | {
                "learning_rates": to_plain(self.learning_rates),
                "criterion": to_plain(self.criterion),
                "signals": to_plain(self.signals),
                "sizes": {name: dict(size) for name, size in self.sizes.items()},
                "arms": {name: arm_table(arm, shared) for name, arm in self.lines.items()},
            }
        )


def _check(name: str, protocol: Protocol) -> None:
    preset, training = protocol.probes.probes(), protocol.training
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


@dataclass(frozen=True, kw_only=True)
class _Keys:
    learning_rates: LearningRates
    kind: Literal["signals"] = "signals"
    name: str = "study"
    criterion: Criterion = field(default_factory=Criterion)
    signals: SignalsConfig = field(default_factory=SignalsConfig)
    sizes: Any = field(default_factory=dict[str, Any])
    arms: Any = None


def read_signals_study(
    raw: Raw,
    where: str,
    *,
    build_model: ModelBuilder | None = None,
    build_optimizer: OptimizerBuilder | None = None,
) -> SignalsSpec:
    """A study of signals from the tables of a study file.

    Raises:
        ConfigError: for an unknown or missing key, a wrong type, a refused value, or an arm given twice.
    """
    rest = {key: value for key, value in raw.items() if key not in SECTIONS}
    keys = reader().read(rest, _Keys, where, also=SECTIONS)
    sections = {key: value for key, value in raw.items() if key in SECTIONS}
    sizes = read_sizes(keys.sizes, where)
    lines = read_arms(keys.arms, sections, where, build_model, build_optimizer)
    arms, places = arms_at_sizes(keys.arms, sections, sizes or {"": {}}, where, build_model, build_optimizer)
    try:
        return SignalsSpec(
            name=keys.name,
            arms=arms,
            places=places,
            lines=lines,
            sizes=sizes,
            learning_rates=keys.learning_rates,
            protocol=read_protocol(sections, where),
            criterion=keys.criterion,
            signals=keys.signals,
        )
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
