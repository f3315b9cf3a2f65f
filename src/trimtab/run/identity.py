"""The run id: a hash of everything that determines the numbers of a run.

The hash covers the specification, the content of the data, the version of the numbers, and the user's code. A field
that was added in a later version is omitted while it has its neutral value, which the field declares with
``metadata={"neutral": value}``. A field that names a path or only controls the machine is always omitted
(``metadata={"identity": False}``). Therefore a new field, a moved data file or another version of torch does not change
the id of a run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, cast

from trimtab.config import canonical, canonical_plain, json_line, to_plain
from trimtab.run.numerics import NUMERICS
from trimtab.run.spec import RunSpec, TrainingProtocol
from trimtab.run.user_code import CodeIdentity, code_identity


@dataclass(frozen=True, slots=True)
class Basis:
    """Everything besides the specification that determines the numbers of an arm's runs.

    Attributes:
        numerics: the version of the numbers.
        data: fingerprint of all text or tokens that a run reads.
        code: identity of the user's code, by role.
    """

    numerics: int
    data: str
    code: Mapping[str, CodeIdentity]

    def table(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "numerics": self.numerics,
            "data": self.data,
            "code": {role: identity.table() for role, identity in sorted(self.code.items())},
        }


def basis_of(spec: RunSpec, data_fingerprint: str) -> Basis:
    """The basis of a run, from the current code and data.

    Raises:
        ValueError: if user code has no source, or holds an object that has no stable value.
    """
    code: dict[str, CodeIdentity] = {}
    for role, thing in _foreign(spec).items():
        code[role] = code_identity(thing)
    return Basis(NUMERICS, data_fingerprint, code)


def run_id(spec: RunSpec, data_fingerprint: str) -> str:
    """The run id: 20 hexadecimal digits. Equal runs have equal ids.

    Raises:
        ValueError: as for ``basis_of``.
    """
    return id_on(spec, basis_of(spec, data_fingerprint))


def id_on(spec: RunSpec, basis: Basis) -> str:
    """The id of a run on a given basis."""
    return Naming(basis).id_of(spec)


class Naming:
    """The ids of runs on one basis. A study names thousands of runs, so what they share is written as tables once.

    Args:
        basis: everything besides the specification that determines the numbers of the runs.
    """

    def __init__(self, basis: Basis) -> None:
        self.basis = cast("dict[str, Any]", canonical_plain(basis.table()))
        self.shared: dict[int, tuple[object, object]] = {}  # by id(); the object is kept, so that no other gets its id

    def id_of(self, spec: RunSpec) -> str:
        """The id of a run."""
        table = {
            **cast("dict[str, Any]", self._of_shared(spec.protocol)),
            "method": self._of_shared(spec.method),
            **cast("dict[str, Any]", canonical_plain(_of_one_run(spec))),
        }
        return hashlib.sha256(json_line({"spec": table, **self.basis}).encode()).hexdigest()[:20]

    def _of_shared(self, part: object) -> object:
        """What determines numbers in a part that many runs have, as canonical plain values."""
        if id(part) not in self.shared:
            self.shared[id(part)] = (part, canonical_plain(_settled(part)))
        return self.shared[id(part)][1]


def same_settings(one: RunSpec, other: RunSpec) -> bool:
    """Whether two runs have the same specification, apart from the paths of their data."""
    return canonical(settled(one)) == canonical(settled(other))


def settled(spec: RunSpec) -> dict[str, Any]:
    """The part of a specification that determines numbers, as plain tables."""
    return settled_protocol(spec.protocol) | {"method": _settled(spec.method)} | _of_one_run(spec)


def _of_one_run(spec: RunSpec) -> dict[str, Any]:
    """The settings in which runs of one arm differ."""
    keys = {"learning_rate": spec.learning_rate, "seeds": _settled(spec.seeds)}
    return keys | ({"repeat": spec.repeat} if spec.repeat else {})


def settled_protocol(protocol: TrainingProtocol) -> dict[str, Any]:
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
    """Code from outside trimtab, by role."""
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
