"""The arms of a study. An arm is one line of its table: a method under a protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

from trimtab.config import ConfigError, Raw, dotted, shown, to_plain
from trimtab.intervention import Intervention
from trimtab.method import Method
from trimtab.methods import catalogue
from trimtab.run.reading import lay_over, read_method, read_protocol, reader
from trimtab.run.spec import SECTIONS, RunSpec, Seeds, TrainingProtocol, UserCode
from trimtab.study.settings import LearningRates
from trimtab.study.trial import Tick

BUILDERS = ("model", "optimizer")


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One line of the table: a method under a protocol.

    Attributes:
        method: slug of the method, for display; "" for a list of interventions without a name.
        code: builders from user code.
        code_names: pairs of role ("model" or "optimizer") and name of a builder. An arm that was read from a file has
            the names without the builders, and cannot be trained.
        learning_rates: the tested range of this arm; None if the arm uses the range of the study.
    """

    name: str
    method: str
    interventions: tuple[Intervention, ...]
    protocol: TrainingProtocol
    code: UserCode = field(default_factory=UserCode)
    code_names: tuple[tuple[str, str], ...] = ()
    learning_rates: LearningRates | None = None

    def named(self, name: str) -> Arm:
        """The same arm under another name."""
        return replace(self, name=name)

    @property
    def missing_code(self) -> list[str]:
        """Names of the builders that the arm needs and does not have."""
        return [name for role, name in self.code_names if getattr(self.code, role) is None]

    def run(self, tick: int, seed: int, data_seed: int | None = None, repeat: int = 0) -> RunSpec:
        """The run of this arm at an LR, in sixteenths of an octave, and a seed.

        ``data_seed`` is the seed of the order of the data; None takes ``seed``. Repeat r of a run has the same seeds
        and r + 1 times its CPU threads, which changes the rounding only.
        """
        protocol = self.protocol
        if repeat:
            training = replace(protocol.training, threads=protocol.training.threads * (repeat + 1))
            protocol = replace(protocol, training=training)
        return RunSpec(
            protocol=protocol,
            method=self.interventions,
            learning_rate=Tick(tick).learning_rate,
            seeds=Seeds(init=seed, data=seed if data_seed is None else data_seed, other=seed),
            repeat=repeat,
            code=self.code,
        )


def read_arms(
    raw: Any, sections: Raw, where: str, code: UserCode, *, over: Raw | None = None, own_rates: bool = True
) -> dict[str, Arm]:
    """The arms of a study file. Each overrides the shared sections, and ``over``, such as a size, overrides each arm.

    Args:
        raw: the tables of the arms.
        sections: the sections that they share.
        where: the file, for errors.
        code: user code, for every arm that does not have its own.
        over: sections that override those of every arm.
        own_rates: whether an arm may set its own learning rates.

    Raises:
        ConfigError: if there are no arms, a name, key or value is invalid, or two arms are equal.
    """
    if not isinstance(raw, dict) or not raw:
        raise ConfigError(f"{where}: arms: expected at least one table such as [arms.baseline], got {shown(raw)}")
    arms: dict[str, Arm] = {}
    for name, table in cast(Raw, raw).items():
        check_name(name, where, "arms")
        arms[name] = _read_arm(name, table, sections, over or {}, where, code, own_rates=own_rates)
    refuse_twins(arms, where)
    return arms


def text_of(arm: Arm) -> tuple[object, ...]:
    """The settings that determine the held-out text on which an arm is evaluated."""
    protocol = arm.protocol
    return protocol.data, protocol.model.context, protocol.evaluation


def protocol_table(protocol: TrainingProtocol) -> Raw:
    """A protocol as tables, without ``model.vocab_size``, which always follows from the data."""
    table = cast(Raw, to_plain(protocol))
    del table["model"]["vocab_size"]
    return table


def arm_table(arm: Arm, shared: Raw) -> Raw:
    """The arm as the table that ``read_arms`` reads."""
    settings = protocol_table(arm.protocol)
    known = catalogue().get(arm.method)
    by_slug = known is not None and known.interventions == arm.interventions
    method: object = arm.method if by_slug else to_plain(arm.interventions)
    if arm.method and not by_slug:
        method = {"name": arm.method, "interventions": method}
    table: Raw = {"method": method} | _changed(settings, shared)
    if settings["optimizer"] != shared["optimizer"]:
        table["optimizer"] = settings["optimizer"]  # a tagged table replaces the shared table completely
    if arm.learning_rates is not None:
        table["learning_rates"] = to_plain(arm.learning_rates)
    if arm.code_names:
        table["code"] = dict(arm.code_names)
    return table


def _changed(settings: Raw, shared: Raw) -> Raw:
    changed: Raw = {}
    for key, value in settings.items():
        if isinstance(value, dict) and isinstance(shared.get(key), dict):
            below = _changed(cast(Raw, value), shared[key])
            if below:
                changed[key] = below
        elif value != shared.get(key):
            changed[key] = value
    return changed


def _read_arm(name: str, table: Any, sections: Raw, over: Raw, where: str, code: UserCode, *, own_rates: bool) -> Arm:
    path = ("arms", name)
    at = f"{where}: {dotted(path)}"
    if not isinstance(table, dict):
        raise ConfigError(f"{at}: expected a table, got {shown(table)}")
    settings = dict(cast(Raw, table))
    named: Any = settings.pop("method", name if name in catalogue() else None)
    if named is None:
        raise ConfigError(f"{at}: method is missing, and '{name}' is not the name of a method")
    code, code_names = _code_of(settings, code, at)
    rates = settings.pop("learning_rates", None) if own_rates else None
    for key in settings:
        if key not in SECTIONS:
            further = ("method", "learning_rates") if own_rates else ("method",)
            raise ConfigError(f"{at}: unknown '{key}'; an arm takes {', '.join((*further, *SECTIONS))}")
    slug = named.slug if isinstance(named, Method) else named if isinstance(named, str) else ""
    if isinstance(named, dict) and set(cast(Raw, named)) == {"name", "interventions"}:
        slug = str(cast(Raw, named)["name"])
        named = cast(Raw, named)["interventions"]
    return Arm(
        name=name,
        method=slug,
        interventions=named.interventions if isinstance(named, Method) else read_method(named, where, path),
        protocol=read_protocol(lay_over(lay_over(sections, settings), over), where, path),
        code=code,
        code_names=code_names,
        learning_rates=None if rates is None else reader().read(rates, LearningRates, where, (*path, "learning_rates")),
    )


def _code_of(settings: Raw, shared: UserCode, at: str) -> tuple[UserCode, tuple[tuple[str, str], ...]]:
    """The builders of an arm and their names; a builder of the arm takes precedence over that of the study."""
    builders: dict[str, Callable[..., Any] | None] = {role: getattr(shared, role) for role in BUILDERS}
    for role in BUILDERS:
        if callable(settings.get(role)):
            builders[role] = settings.pop(role)
    given = settings.pop("code", {})
    if not isinstance(given, dict) or not all(
        role in BUILDERS and isinstance(named, str) for role, named in cast(Raw, given).items()
    ):
        raise ConfigError(
            f"{at}.code: expected a table of names of builders, with keys among model and optimizer, got {shown(given)}"
        )
    names = {role: str(named) for role, named in cast(Raw, given).items()}
    names |= {role: _name_of(builder) for role, builder in builders.items() if builder is not None}
    return UserCode(**cast(Any, builders)), tuple(sorted(names.items()))


def _name_of(builder: Callable[..., Any]) -> str:
    # Without the module: it is __main__ in a script, and another name if the script is imported.
    return str(getattr(builder, "__qualname__", type(builder).__qualname__))


def check_name(name: str, where: str, table: str) -> None:
    """Refuse a name that cannot be displayed.

    Raises:
        ConfigError: if the name is not 1 to 100 printable characters.
    """
    if not 1 <= len(name) <= 100 or any(not character.isprintable() for character in name):
        raise ConfigError(f"{where}: {dotted((table, name))}: a name has 1 to 100 printable characters")


def refuse_twins(arms: Mapping[str, Arm], where: str) -> None:
    """Refuse two arms that have the same runs.

    Raises:
        ConfigError: if two arms are equal; the message names both.
    """
    seen: dict[tuple[Any, ...], str] = {}
    for arm in arms.values():
        key = (arm.interventions, arm.protocol, arm.code, arm.code_names)
        if key in seen:
            raise ConfigError(f"{where}: arms '{seen[key]}' and '{arm.name}' are the same arm; remove one of the two")
        seen[key] = arm.name
