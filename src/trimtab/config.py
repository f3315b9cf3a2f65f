"""TOML <-> frozen dataclasses, strictly: an error names the file, the path of the bad key, and what would do."""

from __future__ import annotations

import difflib
import json
import math
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, cast, get_args, get_origin

import cattrs
import tomli_w
from cattrs import AttributeValidationNote, IterableValidationNote
from cattrs.errors import BaseValidationError, ForbiddenExtraKeysError

T = TypeVar("T")
Raw = dict[str, Any]
LARGEST_FILE = 1 << 20


class ConfigError(ValueError):
    """A config that cannot be used, in one line: file, path of the key, what is wrong and what would do."""


def load_toml(path: Path) -> Raw:
    """Read a TOML file.

    Raises:
        ConfigError: if the file is missing, larger than 1 MiB, not UTF-8 or not TOML.
    """
    try:
        if not path.is_file():
            raise ConfigError(f"{path}: no such file")
        if path.stat().st_size > LARGEST_FILE:
            raise ConfigError(f"{path}: larger than 1 MiB, so this is no config")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error or 'nested too deeply'}") from error
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path}: not valid TOML: {error}") from error


def dump_toml(value: object) -> str:
    """A dataclass or mapping as TOML; keys whose value is None are left out."""
    return tomli_w.dumps(cast(Raw, _without_none(to_plain(value))))


def apply_settings(raw: Raw, settings: Sequence[str]) -> Raw:
    """A copy of ``raw`` with each ``a.b=value`` set; a value that is not TOML counts as a string.

    Raises:
        ConfigError: if a setting has no ``=``, or goes through a key that is not a table.
    """
    changed = cast(Raw, json.loads(json.dumps(raw, default=str)))
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set {setting}: expected KEY=VALUE, such as training.steps=200")
        try:
            keys = _keys_of(path)
            value: object = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            keys, value = path.strip().split("."), text
        table: Any = changed
        for key in keys[:-1]:
            table = table.setdefault(key, {})
            if not isinstance(table, dict):
                raise ConfigError(f"--set {setting}: '{key}' is not a table")
        table[keys[-1]] = value
    return changed


def _keys_of(path: str) -> list[str]:
    keys: list[str] = []
    node: Any = tomllib.loads(f"{path} = 0")
    while isinstance(node, dict):
        key, node = next(iter(node.items()))
        keys.append(key)
    return keys


def merge(base: Raw, over: Mapping[str, Any]) -> Raw:
    """``base`` with the tables of ``over`` laid over it, key by key; lists and values replace."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        both_tables = isinstance(value, dict) and isinstance(below, dict)
        merged[key] = merge(cast(Raw, below), cast(Raw, value)) if both_tables else value
    return merged


class Reader:
    """Turns plain tables into dataclasses, with hooks for types that are written in a shorter way."""

    def __init__(self) -> None:
        self.converter = cattrs.Converter(forbid_extra_keys=True)
        hooks: list[tuple[type, Callable[[Any, Any], Any]]] = [
            (bool, _bool),
            (int, _int),
            (float, _float),
            (str, _str),
        ]
        for kind, hook in hooks:
            self.converter.register_structure_hook(kind, hook)
        self.converter.register_structure_hook_factory(_is_variadic_tuple, self._tuple_hook)

    def accept_tagged(self, kind: type[T], choices: Callable[[], Mapping[str, type[T]]]) -> None:
        """Read a type from a table of one key, the slug of a subclass: ``{ soft_cap = { cap = 30 } }``."""

        def read(raw: Any, _kind: Any) -> T:
            known = choices()
            if not isinstance(raw, dict) or len(cast(Raw, raw)) != 1:
                raise ValueError(f"expected a table of one key, one of {', '.join(known)}; got {shown(raw)}")
            slug, settings = next(iter(cast(Raw, raw).items()))
            if slug not in known:
                raise ValueError(unknown(slug, known))
            try:
                return self.converter.structure(settings, known[slug])
            except Exception as error:
                error.add_note(AttributeValidationNote("", slug, kind))  # pyright: ignore[reportArgumentType]
                raise

        # By the type itself: subclasses are read field by field.
        self.converter.register_structure_hook_func(lambda asked: asked is kind, read)

    def read(self, raw: object, kind: type[T], where: str, at: Sequence[str | int] = ()) -> T:
        """One dataclass from the plain tables found in file ``where`` at the path ``at``.

        Raises:
            ConfigError: for an unknown or missing key, a wrong type, or a refused value.
        """
        try:
            return self.converter.structure(raw, kind)
        except (BaseValidationError, ValueError, TypeError, KeyError, AttributeError) as error:
            path, message = _first_problem(error)
            raise ConfigError(": ".join(part for part in (where, dotted([*at, *path]), message) if part)) from error

    def _tuple_hook(self, kind: Any) -> Callable[[Any, Any], Any]:
        element = get_args(kind)[0]

        def read(raw: Any, _kind: Any) -> tuple[Any, ...]:
            if not isinstance(raw, list | tuple):
                raise TypeError(f"expected a list, got {shown(raw)}")
            items: list[Any] = []
            for index, item in enumerate(cast("Sequence[Any]", raw)):
                try:
                    items.append(self.converter.structure(item, element))
                except Exception as error:
                    error.add_note(IterableValidationNote("", index, element))  # pyright: ignore[reportArgumentType]
                    raise
            return tuple(items)

        return read


def to_plain(value: object) -> object:
    """Dataclasses as tables, subclasses chosen by slug as tables of one key; the inverse of ``Reader.read``."""
    if hasattr(value, "__dataclass_fields__"):
        table = {f.name: to_plain(getattr(value, f.name)) for f in fields(cast(Any, value)) if f.init}
        slug = getattr(value, "slug", None)
        return {slug(): table} if callable(slug) else table
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in cast("Sequence[Any]", value)]
    return value


def canonical(value: object) -> str:
    """The one JSON text of a value: sorted keys, no spaces, shortest round-trip floats; NaN is refused."""
    return json.dumps(to_plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def unknown(name: str, known: Mapping[str, object] | Sequence[str]) -> str:
    """'unknown ...' with the nearest known name, or all of them."""
    near = difflib.get_close_matches(name, list(known), n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
    return f"unknown '{name}'; {hint}"


def shown(raw: object) -> str:
    """A value as an error shows it, cut to 60 characters."""
    text = repr(raw)
    return text if len(text) <= 60 else text[:57] + "..."


def _bool(raw: Any, _kind: Any) -> bool:
    if not isinstance(raw, bool):
        raise TypeError(f"expected true or false, got {shown(raw)}")
    return raw


def _int(raw: Any, _kind: Any) -> int:
    if isinstance(raw, bool) or not isinstance(raw, int):
        raise TypeError(f"expected a whole number, got {shown(raw)}")
    if abs(raw) >= 1 << 63:
        raise ValueError(f"{shown(raw)} does not fit 64 bits")
    return raw


def _float(raw: Any, _kind: Any) -> float:
    power = re.fullmatch(r"2\^(-?\d{1,3}(?:\.\d{1,6})?)", raw) if isinstance(raw, str) else None
    if power:
        return 2.0 ** float(power[1])
    if isinstance(raw, bool) or not isinstance(raw, int | float):
        raise TypeError(f'expected a number or a power such as "2^-8", got {shown(raw)}')
    if not math.isfinite(raw):
        raise ValueError(f"must be finite, got {raw}")
    return float(raw)


def _str(raw: Any, _kind: Any) -> str:
    if not isinstance(raw, str):
        raise TypeError(f"expected a string, got {shown(raw)}")
    return raw


def _is_variadic_tuple(kind: Any) -> bool:
    return get_origin(kind) is tuple and get_args(kind)[1:] == (Ellipsis,)


def _first_problem(error: BaseException) -> tuple[list[str | int], str]:
    path: list[str | int] = []
    while True:
        for note in reversed(getattr(error, "__notes__", [])):
            if isinstance(note, AttributeValidationNote):
                path.append(note.name)
            elif isinstance(note, IterableValidationNote):
                path.append(note.index)
        if not isinstance(error, BaseValidationError):
            break
        error = error.exceptions[0]
    if isinstance(error, ForbiddenExtraKeysError):
        takes = [f.name for f in fields(cast(Any, error.cl))]
        wrong = sorted(error.extra_fields)[0]
        near = difflib.get_close_matches(wrong, takes, n=1)
        hint = f"it takes '{near[0]}'" if near else f"it takes {', '.join(takes) or 'no keys'}"
        return path, f"unknown '{wrong}'; {hint}"
    if isinstance(error, KeyError):
        return path, "missing"
    return path, " ".join(str(error).split())


def dotted(path: Sequence[str | int]) -> str:
    """The path of a key as TOML writes it."""
    text = ""
    for key in path:
        if isinstance(key, int):
            text += f"[{key}]"
        else:
            text += ("." if text else "") + (key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key))
    return text


def _without_none(value: object) -> object:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in cast(Raw, value).items() if v is not None}
    if isinstance(value, list):
        return [_without_none(item) for item in cast("list[object]", value)]
    return value
