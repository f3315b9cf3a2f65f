"""The specification of a comparison of losses: arms, optional sizes, shared seeds, and a learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from typing_extensions import override

from trimtab.run.check import LEAST_BLOCKS
from trimtab.study.arms import text_of
from trimtab.study.bracket import MOST_EXTENSIONS
from trimtab.study.settings import MOST_TRIALS, LearningRates
from trimtab.study.specification import FREE, StudySpec
from trimtab.study.trial import SIXTEENTH, Tick

FIRST_TUNING_SEED = 1000  # seeds of the comparison are smaller


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """The learning rates and seeds of the comparison.

    Attributes:
        seeds: number of seeds of every arm at every rate. All arms use the same seeds, so that differences are paired.
        tune: how the learning rate is chosen. ``arm``: a sweep of each arm decides for that arm. ``reference``: a sweep
            of the reference decides for all arms; an arm with another best rate is then not compared at its best.
            ``fixed``: no sweep; ``learning_rate`` is used. ``nobody`` is the name of ``fixed`` in files of version
            0.1.0.
        tuning_seeds: number of seeds of the sweep. They differ from the seeds of the comparison.
        extensions: largest number of rates by which a sweep goes on beyond each end of the requested range until the
            best rate is bracketed; 0 keeps the requested range.
        at_size: the size at which the sweep is made, for all sizes. "": a sweep is made at every size.
        learning_rate: the learning rate with ``tune = "fixed"``, rounded to the nearest 1/16 octave.
        multiples: multiples of the chosen rate at which the arms are compared.

    Raises:
        ValueError: if a count or a multiple is not positive, or ``learning_rate`` does not agree with ``tune``.
    """

    seeds: int = field(default=5, metadata=FREE)
    tune: Literal["reference", "arm", "fixed", "nobody"] = "arm"
    tuning_seeds: int = 2
    extensions: int = MOST_EXTENSIONS
    at_size: str = ""
    learning_rate: float = 0.0
    multiples: tuple[float, ...] = field(default=(1.0,), metadata=FREE)

    def __post_init__(self) -> None:
        if self.tune == "nobody":
            object.__setattr__(self, "tune", "fixed")
        for name in ("seeds", "tuning_seeds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.extensions <= MOST_TRIALS:
            raise ValueError(f"extensions must lie between 0 and {MOST_TRIALS}, got {self.extensions}")
        if self.seeds > FIRST_TUNING_SEED:
            raise ValueError(f"seeds must be at most {FIRST_TUNING_SEED}, the first tuning seed, got {self.seeds}")
        if (self.tune == "fixed") != (self.learning_rate > 0):
            raise ValueError('learning_rate: tune = "fixed" requires a positive value, and no other tune takes a value')
        if not self.multiples or not all(0 < multiple < math.inf for multiple in self.multiples):
            raise ValueError(f"multiples must be positive, got {list(self.multiples)}")
        if len({self.offset(multiple) for multiple in self.multiples}) < len(self.multiples):
            raise ValueError(f"multiples must be at least 1/16 octave apart, got {list(self.multiples)}")

    @staticmethod
    def offset(multiple: float) -> int:
        """Return a multiple in sixteenths of an octave."""
        return round(math.log2(multiple) * SIXTEENTH)


@dataclass(frozen=True, kw_only=True, slots=True)
class LossStudySpec(StudySpec):
    """The complete specification of a comparison of losses.

    Attributes:
        reference: the line with which the others are compared, at each size.

    Raises:
        ValueError: if the reference or a size is unknown, arms differ in held-out text, or there are too many runs.
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
                    f"'{name}' and '{reference}' would be judged on different blocks of text: data, model.context and "
                    "evaluation must be the same for all arms of a size"
                )
        if self.most_runs() > MOST_TRIALS:
            raise ValueError(
                f"comparison: {self.most_runs()} runs are more than the {MOST_TRIALS} that a study can make"
            )

    def rates_of(self, arm: str) -> LearningRates:
        """Return the range that is swept for an arm."""
        return self.arms[arm].learning_rates or self.learning_rates

    def tuned(self) -> tuple[str, ...]:
        """Return the arms that are swept."""
        comparison = self.comparison
        if comparison.tune == "fixed":
            return ()
        sizes = (comparison.at_size,) if comparison.at_size else self.size_names
        lines = tuple(self.lines) if comparison.tune == "arm" else (self.reference,)
        return tuple(self.name_of(line, size) for size in sizes for line in lines)

    def tuned_by(self, name: str) -> str:
        """Return the arm whose sweep decides the learning rate of an arm."""
        place, comparison = self.places[name], self.comparison
        line = place.line if comparison.tune == "arm" else self.reference
        return self.name_of(line, comparison.at_size or place.size)

    @override
    def ticks(self) -> tuple[Tick, ...]:
        return self.learning_rates.sweep()

    @override
    def first_runs(self) -> int:
        """Return the number of runs of all sweeps in the requested range."""
        return sum(len(self.rates_of(arm).sweep()) for arm in self.tuned()) * self.comparison.tuning_seeds

    @override
    def most_runs(self) -> int:
        comparison = self.comparison
        further = 2 * comparison.extensions * comparison.tuning_seeds * len(self.tuned())
        return self.first_runs() + further + len(self.arms) * comparison.seeds * len(comparison.multiples)
