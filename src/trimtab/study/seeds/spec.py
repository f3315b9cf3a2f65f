"""What a study of seeds is: arms at fixed learning rates, each with every pair of an init seed and a data seed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, cast

from trimtab.config import ConfigError, Raw, to_plain
from trimtab.run.reading import read_protocol, reader
from trimtab.run.spec import SECTIONS, ModelBuilder, OptimizerBuilder, Protocol
from trimtab.study.arms import SIXTEENTH, Arm, arm_table, protocol_table, read_arms
from trimtab.study.spec import MOST_TRIALS

KIND = "seeds"


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedsConfig:
    """The two-way design.

    Attributes:
        learning_rate: at which every run is made; taken to the nearest 1/16 octave.
        init: seeds of the initial weights.
        data: seeds of the order of the data.

    Raises:
        ValueError: if the rate is not positive and finite, or a count is below 2.
    """

    learning_rate: float
    init: int = 5
    data: int = 5

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be positive and finite, got {self.learning_rate}")
        for name in ("init", "data"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} must be at least 2, got {getattr(self, name)}: one seed has no variance")

    @property
    def tick(self) -> int:
        """The rate in sixteenths of an octave."""
        return round(math.log2(self.learning_rate) * SIXTEENTH)


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedsSpec:
    """A study of seeds, completely.

    Raises:
        ValueError: if too many runs are asked for.
    """

    kind: ClassVar[str] = KIND
    name: str
    arms: Mapping[str, Arm]
    seeds: SeedsConfig
    protocol: Protocol = field(default_factory=Protocol)

    def __post_init__(self) -> None:
        if self.most_runs() > MOST_TRIALS:
            raise ValueError(f"seeds: {self.most_runs()} runs are asked for, more than {MOST_TRIALS}")

    def ticks(self) -> tuple[int, ...]:
        """The learning rates, in sixteenths of an octave."""
        return (self.seeds.tick,)

    def first_runs(self) -> int:
        """The number of runs: there is one round."""
        return len(self.arms) * self.seeds.init * self.seeds.data

    def most_runs(self) -> int:
        """The number of all runs."""
        return self.first_runs()

    def fixed(self) -> Raw:
        """What a folder of results must share: all but the name, the arms and how many seeds there are."""
        return cast(Raw, to_plain(self.protocol)) | {"kind": KIND, "learning_rate": self.seeds.learning_rate}

    def table(self) -> Raw:
        """The study as the TOML that ``read_seeds_study`` reads, defaults included."""
        shared = protocol_table(self.protocol)
        arms = {name: arm_table(arm, shared) for name, arm in self.arms.items()}
        return {"kind": KIND, "name": self.name} | shared | {"seeds": to_plain(self.seeds), "arms": arms}


@dataclass(frozen=True, kw_only=True)
class _Keys:
    seeds: SeedsConfig
    kind: Literal["seeds"] = "seeds"
    name: str = "study"
    arms: Any = None


def read_seeds_study(
    raw: Raw,
    where: str,
    *,
    build_model: ModelBuilder | None = None,
    build_optimizer: OptimizerBuilder | None = None,
) -> SeedsSpec:
    """A study of seeds from the tables of a study file.

    Raises:
        ConfigError: for an unknown or missing key, a wrong type, a refused value, or an arm given twice.
    """
    rest = {key: value for key, value in raw.items() if key not in SECTIONS}
    keys = reader().read(rest, _Keys, where, also=SECTIONS)
    sections = {key: value for key, value in raw.items() if key in SECTIONS}
    arms = read_arms(keys.arms, sections, where, build_model, build_optimizer)
    try:
        return SeedsSpec(name=keys.name, arms=arms, seeds=keys.seeds, protocol=read_protocol(sections, where))
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
