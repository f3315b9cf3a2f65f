"""The specification of limits by size. Each size is a study of limits; all share a folder and workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from typing_extensions import override

from trimtab.kinds.max_lr.spec import MaxLrSpec, MoversConfig
from trimtab.study.settings import MOST_TRIALS


@dataclass(frozen=True, kw_only=True, slots=True)
class SizedStudySpec(MaxLrSpec):
    """The complete specification of limits by size.

    Attributes:
        studies: the study of limits of each size; the name of an arm contains line and size.

    Raises:
        ValueError: if there is no size, the reference is not an arm, runs for movers are asked for, or the search asks
            for more than 10,000 trials.
    """

    kind: ClassVar[str] = "max_lr_by_size"
    takes_sizes: ClassVar[bool] = True

    studies: Mapping[str, MaxLrSpec] = field(init=False)

    def __post_init__(self) -> None:
        if not self.sizes:
            raise ValueError('sizes: expected at least one table such as [sizes."width 64"]')
        if self.reference not in self.lines:
            raise ValueError(f"reference: '{self.reference}' is not an arm; arms are {', '.join(self.lines)}")
        if self.movers != MoversConfig():
            raise ValueError('movers: limits by size do not follow movers; make a study of kind "max_lr" at one size')
        object.__setattr__(self, "studies", {size: self._at(size) for size in self.sizes})
        if self.most_runs() > MOST_TRIALS:
            raise ValueError(f"search: {self.most_runs()} trials are more than the {MOST_TRIALS} that a study can make")

    def _at(self, size: str) -> MaxLrSpec:
        arms = {name: arm for name, arm in self.arms.items() if self.places[name].size == size}
        return MaxLrSpec(
            name=f"{self.name}, {size}",
            arms=arms,
            places={name: self.places[name] for name in arms},
            lines=arms,
            sizes={},
            learning_rates=self.learning_rates,
            reference=self.name_of(self.reference, size),
            protocol=next(iter(arms.values())).protocol,
            criterion=self.criterion,
            search=self.search,
        )

    @override
    def first_runs(self) -> int:
        return sum(study.first_runs() for study in self.studies.values())

    @override
    def most_runs(self) -> int:
        return sum(study.most_runs() for study in self.studies.values())
