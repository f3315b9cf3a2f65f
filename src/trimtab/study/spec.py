"""What a study is: a protocol, arms that differ from it, a range of learning rates, a criterion, a search."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from trimtab.config import ConfigError, Raw, dotted, merge, shown, to_plain
from trimtab.intervention import Intervention
from trimtab.method import Method
from trimtab.methods import catalogue
from trimtab.run.reading import read_method, read_protocol, reader
from trimtab.run.spec import SECTIONS, ModelBuilder, OptimizerBuilder, Protocol, RunSpec, Seeds

MOST_TRIALS = 10_000
SIXTEENTH = 16


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
class Arm:
    """One line of the table: a method under a protocol.

    Attributes:
        method: its slug where it has one, for display; "" for a list of interventions without a name.
    """

    name: str
    method: str
    interventions: tuple[Intervention, ...]
    protocol: Protocol
    build_model: ModelBuilder | None = None
    build_optimizer: OptimizerBuilder | None = None

    def run(self, tick: int, seed: int) -> RunSpec:
        """The run of this arm at an LR, given in sixteenths of an octave, and a seed."""
        return RunSpec(
            protocol=self.protocol,
            method=self.interventions,
            learning_rate=2.0 ** (tick / SIXTEENTH),
            seeds=Seeds.all_equal(seed),
            build_model=self.build_model,
            build_optimizer=self.build_optimizer,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class StudySpec:
    """A study, completely.

    Attributes:
        reference: the arm that the others are compared with, and whose best loss says what is usable.
        protocol: what arms share unless they override it.

    Raises:
        ValueError: if the reference is not an arm, or more than 10,000 trials are asked for.
    """

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
        return len(self.arms) * max(self.first_runs(), self.search.most_runs)

    def first_runs(self) -> int:
        """Runs of one arm in phase 1."""
        return len(self.learning_rates.sweep()) * self.search.sweep_seeds + self.search.replicates

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
        shared = cast(Raw, to_plain(self.protocol))
        return (
            {"name": self.name, "reference": self.reference}
            | shared
            | {
                "learning_rates": to_plain(self.learning_rates),
                "criterion": to_plain(self.criterion),
                "search": to_plain(self.search),
                "arms": {name: _arm_table(arm, shared) for name, arm in self.arms.items()},
            }
        )


def _arm_table(arm: Arm, shared: Raw) -> Raw:
    own = cast(Raw, to_plain(arm.protocol))
    known = catalogue().get(arm.method)
    by_slug = known is not None and known.interventions == arm.interventions
    method: object = arm.method if by_slug else to_plain(arm.interventions)
    if arm.method and not by_slug:
        method = {"name": arm.method, "interventions": method}
    return {"method": method} | _changed(own, shared)


def _changed(own: Raw, shared: Raw) -> Raw:
    changed: Raw = {}
    for key, value in own.items():
        if isinstance(value, dict) and isinstance(shared.get(key), dict):
            below = _changed(cast(Raw, value), shared[key])
            if below:
                changed[key] = below
        elif value != shared.get(key):
            changed[key] = value
    return changed


@dataclass(frozen=True, kw_only=True)
class _StudyKeys:
    learning_rates: LearningRates
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
    if not isinstance(keys.arms, dict) or not keys.arms:
        raise ConfigError(f"{where}: arms: expected at least one table such as [arms.baseline], got {shown(keys.arms)}")
    arms: dict[str, Arm] = {}
    for name, table in cast(Raw, keys.arms).items():
        _check_name(name, where)
        arms[name] = _read_arm(name, table, sections, where, build_model, build_optimizer)
    _refuse_twins(arms, where)
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


def _read_arm(
    name: str,
    table: Any,
    sections: Raw,
    where: str,
    build_model: ModelBuilder | None,
    build_optimizer: OptimizerBuilder | None,
) -> Arm:
    path = ("arms", name)
    at = f"{where}: {dotted(path)}"
    if not isinstance(table, dict):
        raise ConfigError(f"{at}: expected a table, got {shown(table)}")
    settings = dict(cast(Raw, table))
    named: Any = settings.pop("method", name if name in catalogue() else None)
    if named is None:
        raise ConfigError(f"{at}: method is missing, and '{name}' is not the name of one")
    for key in settings:
        if key not in SECTIONS:
            raise ConfigError(f"{at}: unknown '{key}'; an arm takes method, {', '.join(SECTIONS)}")
    slug = named.slug if isinstance(named, Method) else named if isinstance(named, str) else ""
    if isinstance(named, dict) and set(cast(Raw, named)) == {"name", "interventions"}:
        slug, named = str(cast(Raw, named)["name"]), cast(Raw, named)["interventions"]
    interventions = named.interventions if isinstance(named, Method) else read_method(named, where, path)
    return Arm(
        name=name,
        method=slug,
        interventions=interventions,
        protocol=read_protocol(merge(sections, settings), where, path),
        build_model=build_model,
        build_optimizer=build_optimizer,
    )


def _check_name(name: str, where: str) -> None:
    if not 1 <= len(name) <= 100 or any(not character.isprintable() for character in name):
        raise ConfigError(f"{where}: {dotted(('arms', name))}: the name of an arm has 1 to 100 printable characters")


def _refuse_twins(arms: Mapping[str, Arm], where: str) -> None:
    seen: dict[tuple[Any, ...], str] = {}
    for arm in arms.values():
        key = (arm.interventions, arm.protocol, arm.build_model, arm.build_optimizer)
        if key in seen:
            raise ConfigError(f"{where}: arms '{seen[key]}' and '{arm.name}' are the same arm twice")
        seen[key] = arm.name
