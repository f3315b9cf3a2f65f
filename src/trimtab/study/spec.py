"""What a study is: a protocol, arms that differ from it, a range of learning rates, a criterion, a search."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, cast

from trimtab.config import ConfigError, Raw, to_plain
from trimtab.run.reading import read_protocol, reader
from trimtab.run.spec import SECTIONS, ModelBuilder, OptimizerBuilder, Protocol
from trimtab.study.arms import SIXTEENTH, Arm, arm_table, protocol_table, read_arms

MOST_TRIALS = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class LearningRates:
    """The tested range and the spacing of the first, coarse sweep.

    Raises:
        ValueError: if a bound is not positive, the range is reversed, or the spacing is not a multiple of 1/16 octave.
    """

    low: float
    high: float
    octaves_apart: float = 1.0

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        if not self.low < self.high:
            raise ValueError(f"low {self.low} is not below high {self.high}")
        if self.octaves_apart * SIXTEENTH != round(self.octaves_apart * SIXTEENTH) or self.octaves_apart <= 0:
            raise ValueError(f"octaves_apart must be a positive multiple of 1/16, got {self.octaves_apart}")
        if self.ticks_low >= self.ticks_high:
            raise ValueError("the range is narrower than 1/16 octave")

    @property
    def ticks_low(self) -> int:
        """log2 of the lowest LR in sixteenths of an octave."""
        return round(math.log2(self.low) * SIXTEENTH)

    @property
    def ticks_high(self) -> int:
        """log2 of the highest LR in sixteenths of an octave."""
        return round(math.log2(self.high) * SIXTEENTH)

    def sweep(self) -> tuple[int, ...]:
        """The ticks of the coarse sweep, ascending; the highest LR is always among them."""
        spaced = range(self.ticks_low, self.ticks_high + 1, round(self.octaves_apart * SIXTEENTH))
        return tuple(sorted({*spaced, self.ticks_high}))


@dataclass(frozen=True, kw_only=True, slots=True)
class Criterion:
    """When a run counts as failed; see ``trimtab.study.labels``.

    Attributes:
        margin: loss above the best that counts as degraded ("d"), in nats.
        explosion_margin: loss above ln V that counts as exploded, in nats.
        explosion_norm_ratio: growth of the weight matrices' norm that counts as exploded.
        stuck_share: share of the way from unigram entropy to the reference's best that a run must get past.
        spike_margin: training loss above its trailing median that counts as a spike, in nats.

    Raises:
        ValueError: if a number is not positive, or stuck_share is not below 1.
    """

    margin: float = 0.2
    explosion_margin: float = 0.1
    explosion_norm_ratio: float = 100.0
    stuck_share: float = 0.2
    spike_margin: float = 0.1

    def __post_init__(self) -> None:
        for name in ("margin", "explosion_margin", "explosion_norm_ratio", "stuck_share", "spike_margin"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        if self.stuck_share >= 1:
            raise ValueError(f"stuck_share must be below 1, got {self.stuck_share}")


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig:
    """How runs are spent. Phase 1 is the sweep and the replicates; phase 2 probes each edge in rounds.

    Attributes:
        design: ``adaptive`` probes where the posterior is uncertain; ``grid`` repeats the sweep with more seeds.
        sweep_seeds: seeds of the coarse sweep.
        replicates: further seeds at each arm's best LR of the sweep: they steady its best loss and measure seed noise.
        probes_per_round: of each open arm; with ``grid`` they are seeds of the whole sweep.
        most_runs: of one arm, all phases together; the stop rule counts runs, never time.
        enough: width of the 95 % interval of LR50 at which an arm is closed, in octaves.

    Raises:
        ValueError: if a count is out of range.
    """

    design: Literal["adaptive", "grid"] = "adaptive"
    sweep_seeds: int = 1
    replicates: int = 2
    probes_per_round: int = 3
    most_runs: int = 40
    enough: float = 0.7

    def __post_init__(self) -> None:
        for name, least in (("sweep_seeds", 1), ("replicates", 0), ("probes_per_round", 1), ("most_runs", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 < self.enough < math.inf:
            raise ValueError(f"enough must be positive and finite, got {self.enough}")


@dataclass(frozen=True, kw_only=True, slots=True)
class StudySpec:
    """A study, completely.

    Attributes:
        reference: the arm that the others are compared with, and whose best loss says what is usable.
        protocol: what arms share unless they override it.

    Raises:
        ValueError: if the reference is not an arm, or more than 10,000 trials are asked for.
    """

    kind: ClassVar[str] = "max_lr"
    name: str
    arms: Mapping[str, Arm]
    learning_rates: LearningRates
    reference: str = "baseline"
    protocol: Protocol = field(default_factory=Protocol)
    criterion: Criterion = field(default_factory=Criterion)
    search: SearchConfig = field(default_factory=SearchConfig)

    def __post_init__(self) -> None:
        if not self.arms:
            raise ValueError("arms: a study needs at least one arm")
        if self.reference not in self.arms:
            raise ValueError(f"reference: '{self.reference}' is not an arm; arms are {', '.join(self.arms)}")
        room = self.learning_rates.ticks_high - self.learning_rates.ticks_low + 1
        if self.search.probes_per_round > room:
            raise ValueError(
                f"search.probes_per_round {self.search.probes_per_round} is more than the {room} rates there are"
            )
        most = self.most_runs()
        if most > MOST_TRIALS:
            raise ValueError(f"search: up to {most} trials are asked for, more than {MOST_TRIALS}")

    def most_runs(self) -> int:
        """Upper bound of the number of runs."""
        return max(self.first_runs(), len(self.arms) * self.search.most_runs)

    def ticks(self) -> tuple[int, ...]:
        """The learning rates of the first sweep, in sixteenths of an octave."""
        return self.learning_rates.sweep()

    def first_runs(self) -> int:
        """Runs of phase 1, all arms together."""
        of_one = len(self.learning_rates.sweep()) * self.search.sweep_seeds + self.search.replicates
        return len(self.arms) * of_one

    def fixed(self) -> Raw:
        """What a folder of results must share: all but the name, the arms and how many runs are spent."""
        search = cast(Raw, to_plain(self.search))
        return cast(Raw, to_plain(self.protocol)) | {
            "learning_rates": to_plain(self.learning_rates),
            "reference": self.reference,
            "criterion": to_plain(self.criterion),
            "search": {key: search[key] for key in ("design", "sweep_seeds", "replicates", "probes_per_round")},
        }

    def table(self) -> Raw:
        """The study as the TOML that ``read_study`` reads, defaults included."""
        shared = protocol_table(self.protocol)
        return (
            {"name": self.name, "reference": self.reference}
            | shared
            | {
                "learning_rates": to_plain(self.learning_rates),
                "criterion": to_plain(self.criterion),
                "search": to_plain(self.search),
                "arms": {name: arm_table(arm, shared) for name, arm in self.arms.items()},
            }
        )


@dataclass(frozen=True, kw_only=True)
class _StudyKeys:
    learning_rates: LearningRates
    kind: Literal["max_lr"] = "max_lr"
    name: str = "study"
    reference: str = "baseline"
    criterion: Criterion = field(default_factory=Criterion)
    search: SearchConfig = field(default_factory=SearchConfig)
    arms: Any = None


def read_study(
    raw: Raw,
    where: str,
    *,
    build_model: ModelBuilder | None = None,
    build_optimizer: OptimizerBuilder | None = None,
) -> StudySpec:
    """A study from the tables of a study file; the builders, given from Python, apply to every arm.

    Raises:
        ConfigError: for an unknown or missing key, a wrong type, a refused value, or an arm given twice.
    """
    rest = {key: value for key, value in raw.items() if key not in SECTIONS}
    keys = reader().read(rest, _StudyKeys, where, also=SECTIONS)
    sections = {key: value for key, value in raw.items() if key in SECTIONS}
    arms = read_arms(keys.arms, sections, where, build_model, build_optimizer)
    try:
        return StudySpec(
            name=keys.name,
            arms=arms,
            learning_rates=keys.learning_rates,
            reference=keys.reference,
            protocol=read_protocol(sections, where),
            criterion=keys.criterion,
            search=keys.search,
        )
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
