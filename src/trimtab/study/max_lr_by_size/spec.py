"""One study of limits, laid out over several sizes: each size is a study by itself, all share a folder and workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from trimtab.config import ConfigError, Raw
from trimtab.run.spec import SECTIONS, ModelBuilder, OptimizerBuilder, Protocol
from trimtab.study.arms import Arm, arm_table, protocol_table, read_arms
from trimtab.study.sizes import Place, arms_at_sizes, read_sizes
from trimtab.study.spec import MOST_TRIALS, StudySpec, read_study

KIND = "max_lr_by_size"


@dataclass(frozen=True, kw_only=True, slots=True)
class SizedStudySpec:
    """Limits by size, completely.

    Attributes:
        studies: by size, the study of the limits at that size; its arms are named after line and size.
        places: line and size of every arm.
        lines: the arms of the file, as they are before a size is laid over them.
        sizes: by name, what each lays over the shared sections.

    Raises:
        ValueError: if more than 10,000 trials are asked for.
    """

    kind: ClassVar[str] = KIND
    studies: Mapping[str, StudySpec]
    places: Mapping[str, Place]
    lines: Mapping[str, Arm]
    sizes: Mapping[str, Raw]
    plain: StudySpec

    def __post_init__(self) -> None:
        if self.most_runs() > MOST_TRIALS:
            raise ValueError(f"search: up to {self.most_runs()} trials are asked for, more than {MOST_TRIALS}")

    @property
    def name(self) -> str:
        """Of the study."""
        return self.plain.name

    @property
    def protocol(self) -> Protocol:
        """What arms share before a size is laid over it."""
        return self.plain.protocol

    @property
    def arms(self) -> Mapping[str, Arm]:
        """Every line at every size."""
        return {name: arm for study in self.studies.values() for name, arm in study.arms.items()}

    def ticks(self) -> tuple[int, ...]:
        """The learning rates of the first sweep, in sixteenths of an octave."""
        return self.plain.ticks()

    def first_runs(self) -> int:
        """Runs of the first phase, all arms together."""
        return sum(study.first_runs() for study in self.studies.values())

    def most_runs(self) -> int:
        """Upper bound of the number of runs."""
        return sum(study.most_runs() for study in self.studies.values())

    def fixed(self) -> Raw:
        """What a folder of results must share: all but the name, the arms, the sizes and how many runs are spent."""
        return {"kind": KIND} | self.plain.fixed()

    def table(self) -> Raw:
        """The study as the TOML that ``read_sized_study`` reads, defaults included."""
        shared = protocol_table(self.protocol)
        arms = {name: arm_table(arm, shared) for name, arm in self.lines.items()}
        sizes = {name: dict(size) for name, size in self.sizes.items()}
        return {"kind": KIND} | self.plain.table() | {"sizes": sizes, "arms": arms}


def read_sized_study(
    raw: Raw,
    where: str,
    *,
    build_model: ModelBuilder | None = None,
    build_optimizer: OptimizerBuilder | None = None,
) -> SizedStudySpec:
    """Limits by size from the tables of a study file.

    Raises:
        ConfigError: as for a study of limits, and if there is no size.
    """
    rest = {key: value for key, value in raw.items() if key not in ("kind", "sizes")}
    plain = read_study(rest, where, build_model=build_model, build_optimizer=build_optimizer)
    sizes = read_sizes(raw.get("sizes", {}), where)
    if not sizes:
        raise ConfigError(f'{where}: sizes: expected at least one table such as [sizes."width 64"]')
    sections = {key: value for key, value in raw.items() if key in SECTIONS}
    lines = read_arms(raw["arms"], sections, where, build_model, build_optimizer)
    arms, places = arms_at_sizes(raw["arms"], sections, sizes, where, build_model, build_optimizer)
    try:
        studies = {
            size: StudySpec(
                name=f"{plain.name}, {size}",
                arms={name: arm for name, arm in arms.items() if places[name].size == size},
                learning_rates=plain.learning_rates,
                reference=next(n for n, place in places.items() if place == Place(plain.reference, size)),
                protocol=next(arm.protocol for name, arm in arms.items() if places[name].size == size),
                criterion=plain.criterion,
                search=plain.search,
            )
            for size in sizes
        }
        return SizedStudySpec(studies=studies, places=places, lines=lines, sizes=sizes, plain=plain)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
