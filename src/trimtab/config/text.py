"""How values are shown: as plain tables, as the JSON text that is hashed, and inside error messages."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, cast

LONGEST_SHOWN = 60


def to_plain(value: object) -> object:
    """Dataclasses as tables, subclasses chosen by slug as tables of one key; the inverse of ``Reader.read``."""
    if hasattr(value, "__dataclass_fields__"):
        table = {f.name: _untagged(f, to_plain(getattr(value, f.name))) for f in fields(cast(Any, value)) if f.init}
        slug = getattr(value, "slug", None)
        return {slug(): table} if callable(slug) else table
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in cast("Sequence[Any]", value)]
    return value


def _untagged(field: Any, plain: Any) -> object:
    """The settings alone, where a field holds one class only and declares it (``metadata={"tagged": False}``)."""
    return plain if field.metadata.get("tagged", True) else next(iter(plain.values()))


def canonical(value: object) -> str:
    """The only JSON text of a value: keys are sorted, there are no spaces, 50.0 is written as 50, NaN is refused."""
    return json_line(canonical_plain(value))


def canonical_plain(value: object) -> object:
    """A value as plain tables and lists with whole numbers as integers; ``json_line`` writes its canonical text."""
    return _whole_as_int(to_plain(value))


def json_line(plain: object) -> str:
    """The canonical text of what ``canonical_plain`` returned, or of tables and lists of such values."""
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _whole_as_int(value: object) -> object:
    if isinstance(value, dict):
        return {key: _whole_as_int(item) for key, item in cast(dict[str, Any], value).items()}
    if isinstance(value, list):
        return [_whole_as_int(item) for item in cast("list[object]", value)]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def unknown(name: str, known: Mapping[str, object] | Sequence[str]) -> str:
    """'unknown ...' with the nearest known name, or with all known names if none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
    return f"unknown '{shortened(name)}'; {hint}"


def shown(raw: object) -> str:
    """A value as an error message shows it, at most 60 characters long."""
    try:
        return shortened(repr(raw))
    except (ValueError, RecursionError):  # an integer of more than 4,300 digits, or a value nested too deeply
        return f"a value of type {type(raw).__name__} that is too large to show"


def shortened(text: str) -> str:
    """Text of at most 60 characters; a longer text ends in '...'."""
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 3] + "..."


def printable(text: str) -> str:
    """Text without control characters and lone surrogates: it cannot steer a terminal, and every encoding takes it."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def dotted(path: Sequence[str | int]) -> str:
    """The path of a key as TOML writes it."""
    text = ""
    for key in path:
        if isinstance(key, int):
            text += f"[{key}]"
        else:
            text += ("." if text else "") + (key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key))
    return text
