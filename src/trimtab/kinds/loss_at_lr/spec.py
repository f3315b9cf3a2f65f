"""What a comparison of losses is: arms, perhaps at several sizes, seeds that they share, and a learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from typing_extensions import override

from trimtab.run.check import LEAST_BLOCKS
from trimtab.study.arms import text_of
from trimtab.study.settings import MOST_TRIALS, LearningRates
from trimtab.study.specification import FREE, StudySpec
from trimtab.study.trial import SIXTEENTH, Tick

FIRST_TUNING_SEED = 1000  # those of the comparison lie below


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """At which learning rates the arms meet, and how often.

    Attributes:
        seeds: of every arm at every rate; the same for all, so that differences are paired.
        tune: whose sweep decides the rate: the ``reference``'s, for all alike; each ``arm``'s own; or none, and the
            rate is ``fixed`` by ``learning_rate``. ``nobody`` is the name of ``fixed`` in files of version 0.1.0.
        tuning_seeds: of the sweep; never those of the comparison.
        at_size: the size at which the sweep is made, for all sizes; "" sweeps each size by itself.
        learning_rate: with ``tune = "fixed"``; taken to the nearest 1/16 octave.
        multiples: of that rate at which the arms are compared.

    Raises:
        ValueError: if a count or a multiple is not positive, or a rate is given where one is tuned or the reverse.
    """

    seeds: int = field(default=5, metadata=FREE)
    tune: Literal["reference", "arm", "fixed", "nobody"] = "reference"
    tuning_seeds: int = 1
    at_size: str = ""
    learning_rate: float = 0.0
    multiples: tuple[float, ...] = field(default=(1.0,), metadata=FREE)

    def __post_init__(self) -> None:
        if self.tune == "nobody":
            object.__setattr__(self, "tune", "fixed")
        for name in ("seeds", "tuning_seeds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.seeds > FIRST_TUNING_SEED:
            raise ValueError(f"seeds must be at most {FIRST_TUNING_SEED}, where tuning seeds begin, got {self.seeds}")
        if (self.tune == "fixed") != (self.learning_rate > 0):
            raise ValueError('learning_rate goes with tune = "fixed", and is positive there')
        if not self.multiples or not all(0 < multiple < math.inf for multiple in self.multiples):
            raise ValueError(f"multiples must be positive, got {list(self.multiples)}")
        if len({self.offset(multiple) for multiple in self.multiples}) < len(self.multiples):
            raise ValueError(f"multiples must be at least 1/16 octave apart, got {list(self.multiples)}")

    @staticmethod
    def offset(multiple: float) -> int:
        """A multiple in sixteenths of an octave."""
        return round(math.log2(multiple) * SIXTEENTH)


@dataclass(frozen=True, kw_only=True, slots=True)
class LossStudySpec(StudySpec):
    """A comparison of losses, completely.

    Attributes:
        reference: the line that the others are compared with, size by size.

    Raises:
        ValueError: if the reference, a size or the blocks of text are missing, or too many runs are asked for.
    """

    kind: ClassVar[str] = "loss_at_lr"
    takes_sizes: ClassVar[bool] = True

    learning_rates: LearningRates = field(default_factory=lambda: LearningRates(low=2.0**-10, high=2.0**-4))
    reference: str = "baseline"
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

    def rates_of(self, arm: str) -> LearningRates:
        """The rates that are swept for an arm."""
        return self.arms[arm].learning_rates or self.learning_rates

    def tuned(self) -> tuple[str, ...]:
        """The arms whose sweeps decide."""
        comparison = self.comparison
        if comparison.tune == "fixed":
            return ()
        sizes = (comparison.at_size,) if comparison.at_size else self.size_names
        lines = tuple(self.lines) if comparison.tune == "arm" else (self.reference,)
        return tuple(self.name_of(line, size) for size in sizes for line in lines)

    def tuned_by(self, name: str) -> str:
        """The arm whose sweep decides the rate of this one."""
        place, comparison = self.places[name], self.comparison
        line = place.line if comparison.tune == "arm" else self.reference
        return self.name_of(line, comparison.at_size or place.size)

    @override
    def ticks(self) -> tuple[Tick, ...]:
        return self.learning_rates.sweep()

    @override
    def first_runs(self) -> int:
        """Runs that tune the rate, all arms together."""
        return sum(len(self.rates_of(arm).sweep()) for arm in self.tuned()) * self.comparison.tuning_seeds

    @override
    def most_runs(self) -> int:
        return self.first_runs() + len(self.arms) * self.comparison.seeds * len(self.comparison.multiples)
