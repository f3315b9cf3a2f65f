"""What a comparison of losses is: arms, perhaps at several sizes, seeds that they share, and a learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, cast

from trimtab.config import ConfigError, Raw, to_plain
from trimtab.run.check import LEAST_BLOCKS
from trimtab.run.reading import read_protocol, reader
from trimtab.run.spec import SECTIONS, ModelBuilder, OptimizerBuilder, Protocol
from trimtab.study.arms import SIXTEENTH, Arm, arm_table, protocol_table, read_arms, text_of
from trimtab.study.sizes import Place, arms_at_sizes, read_sizes
from trimtab.study.spec import MOST_TRIALS, LearningRates

KIND = "loss_at_lr"
FIRST_TUNING_SEED = 1000  # those of the comparison lie below


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """At which learning rates the arms meet, and how often.

    Attributes:
        seeds: of every arm at every rate; the same for all, so that differences are paired.
        tune: whose sweep decides the rate: the ``reference``'s, for all alike; each ``arm``'s own; or ``nobody``'s,
            and ``learning_rate`` is taken.
        tuning_seeds: of the sweep; never those of the comparison.
        at_size: the size at which the sweep is made, for all sizes; "" sweeps each size by itself.
        learning_rate: with ``tune = "nobody"``; taken to the nearest 1/16 octave.
        multiples: of that rate at which the arms are compared.

    Raises:
        ValueError: if a count or a multiple is not positive, or a rate is given where one is tuned or the reverse.
    """

    seeds: int = 5
    tune: Literal["reference", "arm", "nobody"] = "reference"
    tuning_seeds: int = 1
    at_size: str = ""
    learning_rate: float = 0.0
    multiples: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        for name in ("seeds", "tuning_seeds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.seeds > FIRST_TUNING_SEED:
            raise ValueError(f"seeds must be at most {FIRST_TUNING_SEED}, where tuning seeds begin, got {self.seeds}")
        if (self.tune == "nobody") != (self.learning_rate > 0):
            raise ValueError('learning_rate goes with tune = "nobody", and is positive there')
        if not self.multiples or not all(0 < multiple < math.inf for multiple in self.multiples):
            raise ValueError(f"multiples must be positive, got {list(self.multiples)}")
        if len({self.offset(multiple) for multiple in self.multiples}) < len(self.multiples):
            raise ValueError(f"multiples must be at least 1/16 octave apart, got {list(self.multiples)}")

    @staticmethod
    def offset(multiple: float) -> int:
        """A multiple in sixteenths of an octave."""
        return round(math.log2(multiple) * SIXTEENTH)


@dataclass(frozen=True, kw_only=True, slots=True)
class LossStudySpec:
    """A comparison of losses, completely.

    Attributes:
        arms: every line at every size, by a name of both.
        places: the same by line and size.
        lines: the arms of the file, as they are before a size is laid over them.
        sizes: by name, what each lays over the shared sections; empty if all arms have one size.
        reference: the line that the others are compared with, size by size.

    Raises:
        ValueError: if the reference, a size or the blocks of text are missing, or too many runs are asked for.
    """

    kind: ClassVar[str] = KIND
    name: str
    arms: Mapping[str, Arm]
    places: Mapping[str, Place]
    lines: Mapping[str, Arm]
    sizes: Mapping[str, Raw]
    learning_rates: LearningRates
    reference: str = "baseline"
    protocol: Protocol = field(default_factory=Protocol)
    comparison: Comparison = field(default_factory=Comparison)

    def __post_init__(self) -> None:
        if self.reference not in self.lines:
            raise ValueError(f"reference: '{self.reference}' is not an arm; arms are {', '.join(self.lines)}")
        if self.comparison.at_size and self.comparison.at_size not in self.sizes:
            known = ", ".join(self.sizes) or "none"
            raise ValueError(f"comparison.at_size: '{self.comparison.at_size}' is not a size; sizes are {known}")
        for arm in self.arms.values():
            if arm.protocol.evaluation.final_blocks < LEAST_BLOCKS:
                raise ValueError(
                    f"evaluation.final_blocks must be at least {LEAST_BLOCKS}: intervals over text need blocks"
                )
        for name, place in self.places.items():
            reference = self.name_of(self.reference, place.size)
            if text_of(self.arms[name]) != text_of(self.arms[reference]):
                raise ValueError(
                    f"'{name}' and '{reference}' would be judged on other blocks of text: data, model.context and "
                    "evaluation must be the same for all arms of a size"
                )
        if self.most_runs() > MOST_TRIALS:
            raise ValueError(f"comparison: {self.most_runs()} runs are asked for, more than {MOST_TRIALS}")

    def name_of(self, line: str, size: str) -> str:
        """The arm of a line at a size."""
        return next(name for name, place in self.places.items() if place == Place(line, size))

    @property
    def size_names(self) -> tuple[str, ...]:
        """The sizes in order; one without a name where there are none."""
        return tuple(self.sizes) or ("",)

    def tuned(self) -> tuple[str, ...]:
        """The arms whose sweeps decide."""
        comparison = self.comparison
        if comparison.tune == "nobody":
            return ()
        sizes = (comparison.at_size,) if comparison.at_size else self.size_names
        lines = tuple(self.lines) if comparison.tune == "arm" else (self.reference,)
        return tuple(self.name_of(line, size) for size in sizes for line in lines)

    def tuned_by(self, name: str) -> str:
        """The arm whose sweep decides the rate of this one."""
        place, comparison = self.places[name], self.comparison
        line = place.line if comparison.tune == "arm" else self.reference
        return self.name_of(line, comparison.at_size or place.size)

    def ticks(self) -> tuple[int, ...]:
        """The learning rates of the first sweep, in sixteenths of an octave."""
        return self.learning_rates.sweep()

    def first_runs(self) -> int:
        """Runs that tune the rate, all arms together."""
        return len(self.tuned()) * len(self.learning_rates.sweep()) * self.comparison.tuning_seeds

    def most_runs(self) -> int:
        """The number of all runs."""
        return self.first_runs() + len(self.arms) * self.comparison.seeds * len(self.comparison.multiples)

    def fixed(self) -> Raw:
        """What a folder of results must share: all but the name, the arms, the sizes and how many seeds there are."""
        comparison = cast(Raw, to_plain(self.comparison))
        del comparison["seeds"], comparison["multiples"]
        return cast(Raw, to_plain(self.protocol)) | {
            "kind": KIND,
            "learning_rates": to_plain(self.learning_rates),
            "reference": self.reference,
            "comparison": comparison,
        }

    def table(self) -> Raw:
        """The study as the TOML that ``read_loss_study`` reads, defaults included."""
        shared = protocol_table(self.protocol)
        return (
            {"kind": KIND, "name": self.name, "reference": self.reference}
            | shared
            | {
                "learning_rates": to_plain(self.learning_rates),
                "comparison": to_plain(self.comparison),
                "sizes": {name: dict(size) for name, size in self.sizes.items()},
                "arms": {name: arm_table(arm, shared) for name, arm in self.lines.items()},
            }
        )


@dataclass(frozen=True, kw_only=True)
class _Keys:
    kind: Literal["loss_at_lr"] = "loss_at_lr"
    learning_rates: LearningRates = field(default_factory=lambda: LearningRates(low=2.0**-10, high=2.0**-4))
    name: str = "study"
    reference: str = "baseline"
    comparison: Comparison = field(default_factory=Comparison)
    sizes: Any = field(default_factory=dict[str, Any])
    arms: Any = None


def read_loss_study(
    raw: Raw,
    where: str,
    *,
    build_model: ModelBuilder | None = None,
    build_optimizer: OptimizerBuilder | None = None,
) -> LossStudySpec:
    """A comparison of losses from the tables of a study file.

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
        return LossStudySpec(
            name=keys.name,
            arms=arms,
            places=places,
            lines=lines,
            sizes=sizes,
            learning_rates=keys.learning_rates,
            reference=keys.reference,
            protocol=read_protocol(sections, where),
            comparison=keys.comparison,
        )
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
