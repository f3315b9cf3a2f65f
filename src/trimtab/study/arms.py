"""The arms of a study: lines of its table, each a method under a protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from trimtab.config import ConfigError, Raw, dotted, merge, shown, to_plain
from trimtab.intervention import Intervention
from trimtab.method import Method
from trimtab.methods import catalogue
from trimtab.run.reading import read_method, read_protocol
from trimtab.run.spec import SECTIONS, ModelBuilder, OptimizerBuilder, Protocol, RunSpec, Seeds

SIXTEENTH = 16  # ticks in an octave of learning rate


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

    def named(self, name: str) -> Arm:
        """The same arm under another name."""
        return replace(self, name=name)

    def run(self, tick: int, seed: int, data_seed: int | None = None) -> RunSpec:
        """The run of this arm at an LR, given in sixteenths of an octave, and a seed; perhaps another for the data."""
        return RunSpec(
            protocol=self.protocol,
            method=self.interventions,
            learning_rate=2.0 ** (tick / SIXTEENTH),
            seeds=Seeds(init=seed, data=seed if data_seed is None else data_seed, other=seed),
            build_model=self.build_model,
            build_optimizer=self.build_optimizer,
        )


def read_arms(
    raw: Any,
    sections: Raw,
    where: str,
    build_model: ModelBuilder | None = None,
    build_optimizer: OptimizerBuilder | None = None,
    *,
    over: Raw | None = None,
) -> dict[str, Arm]:
    """The arms of a study file, each laid over the sections that they share, and ``over``, such as a size, over each.

    Raises:
        ConfigError: if there is none, or for a bad name, key or value, or an arm given twice.
    """
    if not isinstance(raw, dict) or not raw:
        raise ConfigError(f"{where}: arms: expected at least one table such as [arms.baseline], got {shown(raw)}")
    arms: dict[str, Arm] = {}
    for name, table in cast(Raw, raw).items():
        check_name(name, where, "arms")
        arms[name] = _read_arm(name, table, sections, over or {}, where, build_model, build_optimizer)
    refuse_twins(arms, where)
    return arms


def text_of(arm: Arm) -> tuple[object, ...]:
    """What determines the held-out text on which an arm is judged."""
    protocol = arm.protocol
    return protocol.data, protocol.model.context, protocol.evaluation


def protocol_table(protocol: Protocol) -> Raw:
    """A protocol as tables, without the model's vocabulary: it is that of the data, whatever is laid over those."""
    table = cast(Raw, to_plain(protocol))
    del table["model"]["vocab_size"]
    return table


def arm_table(arm: Arm, shared: Raw) -> Raw:
    """The arm as the table that ``read_arms`` reads."""
    own = protocol_table(arm.protocol)
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


def _read_arm(
    name: str,
    table: Any,
    sections: Raw,
    over: Raw,
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
        protocol=read_protocol(merge(merge(sections, settings), over), where, path),
        build_model=build_model,
        build_optimizer=build_optimizer,
    )


def check_name(name: str, where: str, table: str) -> None:
    """Refuse a name that would not show.

    Raises:
        ConfigError: if it is not 1 to 100 printable characters.
    """
    if not 1 <= len(name) <= 100 or any(not character.isprintable() for character in name):
        raise ConfigError(f"{where}: {dotted((table, name))}: a name has 1 to 100 printable characters")


def refuse_twins(arms: Mapping[str, Arm], where: str) -> None:
    """Refuse two names for the same runs.

    Raises:
        ConfigError: naming both.
    """
    seen: dict[tuple[Any, ...], str] = {}
    for arm in arms.values():
        key = (arm.interventions, arm.protocol, arm.build_model, arm.build_optimizer)
        if key in seen:
            raise ConfigError(f"{where}: arms '{seen[key]}' and '{arm.name}' are the same arm twice")
        seen[key] = arm.name
