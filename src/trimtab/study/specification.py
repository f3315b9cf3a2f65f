"""The base class of the specifications of all kinds of study, and how a specification is read and written.

A kind subclasses ``StudySpec`` and declares its settings as fields. A setting that may change when a study is extended,
such as the number of seeds, has the metadata ``FREE``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, make_dataclass
from typing import Any, ClassVar, Literal, TypeVar, cast, get_type_hints

from trimtab.config import ConfigError, Raw, to_plain
from trimtab.run.identity import settled_protocol
from trimtab.run.reading import read_protocol, reader
from trimtab.run.spec import SECTIONS, RunSpec, TrainingProtocol, UserCode
from trimtab.study.arms import Arm, arm_table, protocol_table, read_arms
from trimtab.study.sizes import Place, arms_at_sizes, read_sizes
from trimtab.study.trial import Trial

MOST_SEED_OFFSET = 10**9  # a seed has 32 bits
FREE: Mapping[str, Any] = {"free": True}


@dataclass(frozen=True, kw_only=True, slots=True)
class StudySpec:
    """The complete specification of a study.

    Attributes:
        arms: every line at every size, by a name that joins line and size.
        places: the line and the size of every arm.
        lines: the arms of the file, before a size overrides their settings.
        sizes: the sections of each size, by name; empty if the study has no sizes.
        protocol: the settings of every line, unless the line overrides them.
        seed_offset: number that is added to every seed of the study. Studies that differ in it share no run, so one is
            a replication of the other. Reports give seeds without it.
    """

    kind: ClassVar[str]
    takes_sizes: ClassVar[bool] = False
    takes_learning_rates: ClassVar[bool] = True

    name: str
    arms: Mapping[str, Arm]
    places: Mapping[str, Place]
    lines: Mapping[str, Arm]
    sizes: Mapping[str, Raw]
    protocol: TrainingProtocol = field(default_factory=TrainingProtocol)
    seed_offset: int = 0

    @abstractmethod
    def ticks(self) -> Sequence[Any]:
        """The learning rates of the first round, over all arms, ascending."""

    @abstractmethod
    def first_runs(self) -> int:
        """The number of runs of the first phase, over all arms."""

    @abstractmethod
    def most_runs(self) -> int:
        """An upper bound on the number of runs."""

    def run_of(self, trial: Trial) -> RunSpec:
        """The run of a trial."""
        data_seed = None if trial.data_seed is None else trial.data_seed + self.seed_offset
        return self.arms[trial.arm].run(trial.tick, trial.seed + self.seed_offset, data_seed, trial.repeat)

    @property
    def size_names(self) -> tuple[str, ...]:
        """The names of the sizes, in order; a single "" if the study has no sizes."""
        return tuple(self.sizes) or ("",)

    def name_of(self, line: str, size: str) -> str:
        """The name of the arm of a line at a size."""
        return next(name for name, place in self.places.items() if place == Place(line, size))

    def fixed(self) -> Raw:
        """The settings that may not change in an extended study: all except name, arms, sizes and ``FREE`` settings."""
        settings = {f.name: _without_free(getattr(self, f.name)) for f in settings_of(type(self)) if not _is_free(f)}
        same = {"kind": self.kind, "seed_offset": self.seed_offset}
        return settled_protocol(self.protocol) | same | settings

    def table(self) -> Raw:
        """The study as the tables that ``read_spec`` reads, defaults included."""
        shared = protocol_table(self.protocol)
        settings = {f.name: to_plain(getattr(self, f.name)) for f in settings_of(type(self))}
        plain = {name: value for name, value in settings.items() if not isinstance(value, dict)}
        tables = {name: value for name, value in settings.items() if isinstance(value, dict)}
        sizes = {"sizes": {name: dict(size) for name, size in self.sizes.items()}} if self.takes_sizes else {}
        arms = {"arms": {name: arm_table(arm, shared) for name, arm in self.lines.items()}}
        offset = {"seed_offset": self.seed_offset} if self.seed_offset else {}
        return {"kind": self.kind, "name": self.name} | offset | plain | shared | tables | sizes | arms


S = TypeVar("S", bound=StudySpec)


def read_spec(kind: type[S], raw: Raw, where: str, code: UserCode) -> S:
    """A study of one kind from the tables of a study file. ``code`` applies to every arm that has no code of its own.

    Raises:
        ConfigError: for an unknown or missing key, a wrong type, a refused value, or two equal arms.
    """
    rest = {key: value for key, value in raw.items() if key not in SECTIONS}
    keys: Any = reader().read(rest, _keys_of(kind), where, also=SECTIONS)
    sections = {key: value for key, value in raw.items() if key in SECTIONS}
    sizes = read_sizes(keys.sizes, where) if kind.takes_sizes else {}
    if not 0 <= keys.seed_offset <= MOST_SEED_OFFSET:
        raise ConfigError(f"{where}: seed_offset must lie between 0 and {MOST_SEED_OFFSET:,}, got {keys.seed_offset:,}")
    own_rates = kind.takes_learning_rates
    lines = read_arms(keys.arms, sections, where, code, own_rates=own_rates)
    arms, places = arms_at_sizes(keys.arms, sections, sizes or {"": {}}, where, code, own_rates=own_rates)
    try:
        return kind(
            name=keys.name,
            arms=arms,
            places=places,
            lines=lines,
            sizes=sizes,
            protocol=read_protocol(sections, where),
            seed_offset=keys.seed_offset,
            **{f.name: getattr(keys, f.name) for f in settings_of(kind)},
        )
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def settings_of(kind: type[StudySpec]) -> list[Any]:
    """The fields that a kind adds."""
    shared = {f.name for f in fields(StudySpec)}
    return [f for f in fields(kind) if f.init and f.name not in shared]


def _keys_of(kind: type[StudySpec]) -> type[Any]:
    hints = get_type_hints(kind)
    keys: list[Any] = [
        ("kind", Literal[kind.kind], field(default=kind.kind)),  # pyright: ignore[reportInvalidTypeForm]
        ("name", str, field(default="study")),
        ("arms", Any, field(default=None)),
        ("seed_offset", int, field(default=0)),
    ]
    if kind.takes_sizes:
        keys.append(("sizes", Any, field(default_factory=dict)))
    for setting in settings_of(kind):
        if setting.default is not MISSING:
            default = field(default=setting.default)
        elif setting.default_factory is not MISSING:
            default = field(default_factory=setting.default_factory)
        else:
            default = field()
        keys.append((setting.name, hints[setting.name], default))
    return make_dataclass(f"{kind.__name__}Keys", keys, frozen=True, kw_only=True)


def _without_free(value: object) -> object:
    if not hasattr(value, "__dataclass_fields__"):
        return to_plain(value)
    plain = cast(Raw, to_plain(value))
    return {f.name: plain[f.name] for f in fields(cast(Any, value)) if f.name in plain and not _is_free(f)}


def _is_free(setting: Any) -> bool:
    return bool(setting.metadata.get("free", False))
