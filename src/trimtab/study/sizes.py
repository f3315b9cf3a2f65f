"""Sizes of a study: settings laid over every arm, so that each line of its table stands at each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from trimtab.config import ConfigError, Raw, shown
from trimtab.run.spec import SECTIONS, UserCode
from trimtab.study.arms import Arm, check_name, read_arms, refuse_twins


@dataclass(frozen=True, slots=True)
class Place:
    """Where an arm of the study stands: the line of the file it comes from, and the size; "" where there are none."""

    line: str
    size: str


def read_sizes(raw: Any, where: str) -> dict[str, Raw]:
    """By name, the sections that each size lays over those of every arm.

    Raises:
        ConfigError: for a bad name, or a key that is no section.
    """
    if not isinstance(raw, dict):
        raise ConfigError(f'{where}: sizes: expected tables such as [sizes."6 layers"], got {shown(raw)}')
    sizes: dict[str, Raw] = {}
    for name, table in cast(Raw, raw).items():
        check_name(name, where, "sizes")
        if not isinstance(table, dict) or not table:
            raise ConfigError(f"{where}: sizes.{name}: expected settings such as model.num_layers = 6")
        for key in cast(Raw, table):
            if key not in SECTIONS:
                raise ConfigError(f"{where}: sizes.{name}: unknown '{key}'; a size takes {', '.join(SECTIONS)}")
        sizes[name] = cast(Raw, table)
    return sizes


def arms_at_sizes(
    raw: Any,
    sections: Raw,
    sizes: Mapping[str, Raw],
    where: str,
    code: UserCode,
    *,
    own_rates: bool = True,
) -> tuple[dict[str, Arm], dict[str, Place]]:
    """Every line of a study file at every size, under a name of both, and which is which.

    Raises:
        ConfigError: as for arms, and if two of the names would be the same.
    """
    arms: dict[str, Arm] = {}
    places: dict[str, Place] = {}
    for size, over in sizes.items():
        for line, arm in read_arms(raw, sections, where, code, over=over, own_rates=own_rates).items():
            name = f"{line}, {size}" if size else line
            if name in arms:
                raise ConfigError(f"{where}: arms and sizes: '{name}' would stand for two of them; rename one")
            arms[name] = arm.named(name)
            places[name] = Place(line, size)
    refuse_twins(arms, where)
    return arms, places
