"""The name of a run: a hash of what determines its numbers.

That is its specification, its data by content, the version of the numbers, and the user's code. A field that was added
later is left out while it holds its neutral value, which the field declares (``metadata={"neutral": value}``); a field
that names a place or only steers the machine is left out altogether (``metadata={"identity": False}``). So a new
field, a moved data file, a renamed variable or another torch gives no run another name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, cast

from trimtab.config import canonical, to_plain
from trimtab.run.numerics import NUMERICS
from trimtab.run.spec import Protocol, RunSpec
from trimtab.run.user_code import CodeIdentity, code_identity


@dataclass(frozen=True, slots=True)
class Basis:
    """What the numbers of an arm's runs rest on beside its specification.

    Attributes:
        numerics: the version of the numbers.
        data: fingerprint of all text or tokens that a run reads.
        code: the user's code by what it is for.
    """

    numerics: int
    data: str
    code: Mapping[str, CodeIdentity]

    def table(self) -> dict[str, Any]:
        """As plain values; nothing of code where there is none."""
        return {
            "numerics": self.numerics,
            "data": self.data,
            "code": {role: one.table() for role, one in sorted(self.code.items())},
        }


def basis_of(spec: RunSpec, data_fingerprint: str) -> Basis:
    """The basis of a run, as it is now.

    Raises:
        ValueError: if the user's own code has no source or holds what has no stable value.
    """
    code: dict[str, CodeIdentity] = {}
    for role, thing in _foreign(spec).items():
        code[role] = code_identity(thing)
    return Basis(NUMERICS, data_fingerprint, code)


def run_id(spec: RunSpec, data_fingerprint: str) -> str:
    """20 hexadecimal digits that name a run's folder; equal runs have equal names.

    Raises:
        ValueError: as ``basis_of``.
    """
    return id_on(spec, basis_of(spec, data_fingerprint))


def id_on(spec: RunSpec, basis: Basis) -> str:
    """The name of a run on a given basis."""
    return hashlib.sha256(canonical({"spec": settled(spec), **basis.table()}).encode()).hexdigest()[:20]


def same_settings(one: RunSpec, other: RunSpec) -> bool:
    """Whether two runs have the same specification, wherever their data lie."""
    return canonical(settled(one)) == canonical(settled(other))


def settled(spec: RunSpec) -> dict[str, Any]:
    """The part of a specification that determines numbers, as plain tables."""
    return settled_protocol(spec.protocol) | {
        "method": _settled(spec.method),
        "learning_rate": spec.learning_rate,
        "seeds": _settled(spec.seeds),
    }


def settled_protocol(protocol: Protocol) -> dict[str, Any]:
    """The part of a protocol that determines numbers, as plain tables."""
    return cast("dict[str, Any]", _settled(protocol))


def _settled(value: object) -> object:
    if hasattr(value, "__dataclass_fields__"):
        table = {
            f.name: _settled(getattr(value, f.name))
            for f in fields(cast(Any, value))
            if f.init and f.metadata.get("identity", True) and not _neutral(f.metadata, getattr(value, f.name))
        }
        slug = getattr(value, "slug", None)
        return {slug(): table} if callable(slug) else table
    if isinstance(value, Mapping):
        return {str(key): _settled(item) for key, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_settled(item) for item in cast("list[Any]", value)]
    return to_plain(value)


def _neutral(metadata: Mapping[str, Any], value: object) -> bool:
    return "neutral" in metadata and value == metadata["neutral"]


def _foreign(spec: RunSpec) -> dict[str, Callable[..., Any]]:
    """Code that is not ours, by what it is for."""
    things: dict[str, Callable[..., Any]] = {}
    for role, builder in (("model", spec.code.model), ("optimizer", spec.code.optimizer)):
        if builder is not None:
            things[role] = builder
    configured = [spec.protocol.data, spec.protocol.optimizer, *spec.interventions]
    for part in configured:
        kind = type(part)
        if kind.__module__.split(".")[0] != "trimtab":
            things[kind.slug()] = kind
    return things
