"""Sizes of a study. A size is a set of settings that overrides those of every arm, so each arm exists at each size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from trimtab.config import ConfigError, Raw, shown
from trimtab.run.spec import SECTIONS, UserCode
from trimtab.study.arms import Arm, check_name, read_arms, refuse_twins


@dataclass(frozen=True, slots=True)
class Place:
    """The line of the study file that an arm comes from, and its size; the size is "" if the study has no sizes."""

    line: str
    size: str


def read_sizes(raw: Any, where: str) -> dict[str, Raw]:
    """The sections of each size by its name; they override the sections of every arm.

    Raises:
        ConfigError: if a name is invalid, a size is empty, or a key is not a section.
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
    """Every line of a study file at every size, as arms and places by a name that joins line and size.

    Raises:
        ConfigError: as for ``read_arms``, and if two names would be equal.
    """
    arms: dict[str, Arm] = {}
    places: dict[str, Place] = {}
    for size, over in sizes.items():
        for line, arm in read_arms(raw, sections, where, code, over=over, own_rates=own_rates).items():
            name = f"{line}, {size}" if size else line
            if name in arms:
                raise ConfigError(
                    f"{where}: arms and sizes: '{name}' would be the name of two arms; rename an arm or a size"
                )
            arms[name] = arm.named(name)
            places[name] = Place(line, size)
    refuse_twins(arms, where)
    return arms, places
