"""What the specifications of all kinds of study share: arms under a protocol, how a file is read, how it is written.

A kind subclasses ``StudySpec`` and declares its settings as fields, once. A setting that may change when a study is
extended, such as the number of seeds, is declared by ``free``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, make_dataclass
from typing import Any, ClassVar, Literal, TypeVar, cast, get_type_hints

from trimtab.config import ConfigError, Raw, to_plain
from trimtab.run.identity import settled_protocol
from trimtab.run.reading import read_protocol, reader
from trimtab.run.spec import SECTIONS, Protocol, UserCode
from trimtab.study.arms import Arm, arm_table, protocol_table, read_arms
from trimtab.study.sizes import Place, arms_at_sizes, read_sizes

FREE: Mapping[str, Any] = {"free": True}


@dataclass(frozen=True, kw_only=True, slots=True)
class StudySpec:
    """A study, completely.

    Attributes:
        arms: every line at every size, by a name of both.
        places: the line and the size of every arm.
        lines: the arms of the file, before a size is laid over them.
        sizes: by name, the sections that each lays over every line; empty if all arms have one size.
        protocol: what the lines share unless they override it.
    """

    kind: ClassVar[str]
    takes_sizes: ClassVar[bool] = False
    takes_learning_rates: ClassVar[bool] = True

    name: str
    arms: Mapping[str, Arm]
    places: Mapping[str, Place]
    lines: Mapping[str, Arm]
    sizes: Mapping[str, Raw]
    protocol: Protocol = field(default_factory=Protocol)

    @abstractmethod
    def ticks(self) -> Sequence[Any]:
        """The learning rates of the first round, all arms together, ascending."""

    @abstractmethod
    def first_runs(self) -> int:
        """The number of runs of the first phase, all arms together."""

    @abstractmethod
    def most_runs(self) -> int:
        """An upper bound of the number of runs."""

    @property
    def size_names(self) -> tuple[str, ...]:
        """The sizes in order; one without a name where there are none."""
        return tuple(self.sizes) or ("",)

    def name_of(self, line: str, size: str) -> str:
        """The arm of a line at a size."""
        return next(name for name, place in self.places.items() if place == Place(line, size))

    def fixed(self) -> Raw:
        """What a folder of results must share: all but name, arms, sizes and what is declared free."""
        settings = {f.name: _without_free(getattr(self, f.name)) for f in settings_of(type(self)) if not _is_free(f)}
        return settled_protocol(self.protocol) | {"kind": self.kind} | settings

    def table(self) -> Raw:
        """The study as the TOML that ``read_spec`` reads, defaults included."""
        shared = protocol_table(self.protocol)
        settings = {f.name: to_plain(getattr(self, f.name)) for f in settings_of(type(self))}
        plain = {name: value for name, value in settings.items() if not isinstance(value, dict)}
        tables = {name: value for name, value in settings.items() if isinstance(value, dict)}
        sizes = {"sizes": {name: dict(size) for name, size in self.sizes.items()}} if self.takes_sizes else {}
        arms = {"arms": {name: arm_table(arm, shared) for name, arm in self.lines.items()}}
        return {"kind": self.kind, "name": self.name} | plain | shared | tables | sizes | arms


S = TypeVar("S", bound=StudySpec)


def read_spec(kind: type[S], raw: Raw, where: str, code: UserCode) -> S:
    """A study of one kind from the tables of a study file; the user's code, given from Python, applies to every arm.

    Raises:
        ConfigError: for an unknown or missing key, a wrong type, a refused value, or an arm given twice.
    """
    rest = {key: value for key, value in raw.items() if key not in SECTIONS}
    keys: Any = reader().read(rest, _keys_of(kind), where, also=SECTIONS)
    sections = {key: value for key, value in raw.items() if key in SECTIONS}
    sizes = read_sizes(keys.sizes, where) if kind.takes_sizes else {}
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
    ]
    if kind.takes_sizes:
        keys.append(("sizes", Any, field(default_factory=dict)))
    for one in settings_of(kind):
        if one.default is not MISSING:
            default = field(default=one.default)
        elif one.default_factory is not MISSING:
            default = field(default_factory=one.default_factory)
        else:
            default = field()
        keys.append((one.name, hints[one.name], default))
    return make_dataclass(f"{kind.__name__}Keys", keys, frozen=True, kw_only=True)


def _without_free(value: object) -> object:
    if not hasattr(value, "__dataclass_fields__"):
        return to_plain(value)
    plain = cast(Raw, to_plain(value))
    return {f.name: plain[f.name] for f in fields(cast(Any, value)) if f.name in plain and not _is_free(f)}


def _is_free(one: Any) -> bool:
    return bool(one.metadata.get("free", False))
