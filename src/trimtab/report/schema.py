"""The JSON Schema of ``results.json``, generated from the classes that it is written from, for every kind of study."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import fields
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from trimtab.report.report import SCHEMA
from trimtab.report.results import Excluded, Provenance, StudyHeading
from trimtab.report.seed_results import SeedGroupResults
from trimtab.section import Finite
from trimtab.study.kind import KINDS

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema(kind_slug: str) -> dict[str, Any]:
    """Return the schema of a kind of study.

    Raises:
        KeyError: if there is no such kind.
    """
    kind = KINDS.get(kind_slug)
    study = _merged(_of(StudyHeading), _of(kind.facts))
    shared = {
        "type": "object",
        "properties": {
            "schema": {"const": SCHEMA},
            "kind": {"const": kind.slug},
            "study": study,
            "excluded": _of(Sequence[Excluded]),
            "seeds": _of(Sequence[SeedGroupResults]),
            "provenance": _of(Provenance),
        },
        "required": ["schema", "kind", "study", "excluded", "seeds", "provenance"],
        "additionalProperties": False,
    }
    whole = _merged(shared, _of(kind.results))
    return {"$schema": DIALECT, "title": f"results.json of a study of kind {kind.slug}", **whole}


def _merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    return {
        **first,
        "properties": {**first["properties"], **second["properties"]},
        "required": [*first["required"], *(name for name in second["required"] if name not in first["required"])],
    }


def _of(hint: Any) -> dict[str, Any]:
    """Return the schema of a type; a float that is not ``Finite`` may be null, since JSON has no NaN."""
    simple = _SIMPLE.get(hint)
    if simple is not None:
        return dict(simple)
    if isinstance(hint, type) and hasattr(hint, "__dataclass_fields__"):
        return _of_dataclass(hint)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return {"enum": [member.value for member in hint]}
    if isinstance(hint, type) and issubclass(hint, int):
        return {"type": "integer"}
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_of(argument) for argument in arguments]}
    if origin is tuple:
        return _of_tuple(arguments)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _of_mapping(*arguments)
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return {"type": "array", "items": _of(arguments[0])}
    raise TypeError(f"no JSON Schema is known for {hint}")


_SIMPLE: dict[Any, dict[str, Any]] = {
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    Finite: {"type": "number"},
    float: {"type": ["number", "null"]},
    str: {"type": "string"},
    type(None): {"type": "null"},
    Any: {},
    object: {},
}


def _of_mapping(key: Any, value: Any) -> dict[str, Any]:
    if get_origin(key) is not Literal:
        return {"type": "object", "additionalProperties": _of(value)}
    names = list(get_args(key))
    return {
        "type": "object",
        "properties": {name: _of(value) for name in names},
        "required": names,
        "additionalProperties": False,
    }


def _of_tuple(arguments: tuple[Any, ...]) -> dict[str, Any]:
    if arguments[1:] == (Ellipsis,):
        return {"type": "array", "items": _of(arguments[0])}
    return {
        "type": "array",
        "prefixItems": [_of(argument) for argument in arguments],
        "minItems": len(arguments),
        "maxItems": len(arguments),
    }


def _of_dataclass(kind: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    properties = {f.name: _of(hints[f.name]) for f in fields(kind)}
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
