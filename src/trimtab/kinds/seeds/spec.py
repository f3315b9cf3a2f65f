"""The specification of a study of seeds: arms at a fixed learning rate, with every pair of init seed and data seed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from typing_extensions import override

from trimtab.study.settings import MOST_TRIALS
from trimtab.study.specification import FREE, StudySpec
from trimtab.study.trial import Tick


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedsConfig:
    """The two-way design.

    Attributes:
        learning_rate: the learning rate of every run, rounded to the nearest 1/16 octave.
        init: number of seeds of the initial weights.
        data: number of seeds of the order of the data.
        repeats: number of cells of the design that are trained again with the same seeds and other rounding, that is,
            with twice as many CPU threads. Without repeats, interaction and numerics cannot be told apart.

    Raises:
        ValueError: if the learning rate is not positive and finite, a count is below 2, or ``repeats`` is negative or
            above the number of cells.
    """

    learning_rate: float
    init: int = field(default=5, metadata=FREE)
    data: int = field(default=5, metadata=FREE)
    repeats: int = field(default=0, metadata=FREE)

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be positive and finite, got {self.learning_rate}")
        for name in ("init", "data"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} must be at least 2, got {getattr(self, name)}: a single seed has no variance")
        if not 0 <= self.repeats <= self.init * self.data:
            raise ValueError(f"repeats must lie between 0 and {self.init * self.data} cells, got {self.repeats}")

    @property
    def tick(self) -> Tick:
        """The learning rate in sixteenths of an octave."""
        return Tick.nearest(self.learning_rate)


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedsSpec(StudySpec):
    """The complete specification of a study of seeds.

    Raises:
        ValueError: if there are more than 10,000 runs.
    """

    kind: ClassVar[str] = "seeds"
    takes_learning_rates: ClassVar[bool] = False

    seeds: SeedsConfig

    def __post_init__(self) -> None:
        if self.most_runs() > MOST_TRIALS:
            raise ValueError(f"seeds: {self.most_runs()} runs are more than the {MOST_TRIALS} that a study can make")

    @override
    def ticks(self) -> tuple[Tick, ...]:
        return (self.seeds.tick,)

    @override
    def first_runs(self) -> int:
        return len(self.arms) * (self.seeds.init * self.seeds.data + self.seeds.repeats)

    @override
    def most_runs(self) -> int:
        return self.first_runs()
