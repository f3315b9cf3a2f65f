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
        keys, value = _setting(setting)
        table: Any = changed
        for key in keys[:-1]:
            table = table.setdefault(key, {})
            if not isinstance(table, dict):
                raise ConfigError(f"--set {setting}: '{key}' is not a table")
        table[keys[-1]] = value
    return changed


# A bare or a quoted key, as in TOML, without escapes.
_KEY = r"""(?:[A-Za-z0-9_-]+|"[^"\\\x00-\x1f\x7f]*"|'[^'\x00-\x1f\x7f]*')"""


def _setting(setting: str) -> tuple[list[str], object]:
    """Keys and value of ``a."b c".d=value``."""
    key = re.match(rf"\s*({_KEY}(?:\.{_KEY})*)\s*=", setting)
    if key is None:
        raise ConfigError(f"--set {shown(setting)}: expected KEY=VALUE, such as training.steps=200")
    text = setting[key.end() :].strip()
    try:
        parsed = tomllib.loads(f"value = {text}")
        value: object = parsed["value"] if list(parsed) == ["value"] else text
    except tomllib.TOMLDecodeError:
        value = text
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--set {key[1]}: {shown(text)} cannot be read ({type(error).__name__})") from error
    return _keys_of(key[1]), value


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

    def read(self, raw: object, kind: type[T], where: str, at: Sequence[str | int] = (), also: Sequence[str] = ()) -> T:
        """One dataclass from the plain tables found in file ``where`` at the path ``at``.

        ``also`` names the keys beside those of the dataclass that a misspelt key may have meant.

        Raises:
            ConfigError: for an unknown or missing key, a wrong type, or a refused value.
        """
        try:
            return self.converter.structure(raw, kind)
        except (BaseValidationError, ValueError, TypeError, KeyError, AttributeError) as error:
            path, message = _first_problem(error, also)
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
    """The one JSON text of a value: sorted keys, no spaces, 50 for 50.0 too; NaN is refused."""
    return json.dumps(_whole_as_int(to_plain(value)), sort_keys=True, separators=(",", ":"), allow_nan=False)


def _whole_as_int(value: object) -> object:
    if isinstance(value, dict):
        return {key: _whole_as_int(item) for key, item in cast(Raw, value).items()}
    if isinstance(value, list):
        return [_whole_as_int(item) for item in cast("list[object]", value)]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def unknown(name: str, known: Mapping[str, object] | Sequence[str]) -> str:
    """'unknown ...' with the nearest known name, or all of them."""
    near = difflib.get_close_matches(name, list(known), n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
    return f"unknown '{name}'; {hint}"


def shown(raw: object) -> str:
    """A value as an error shows it, cut to 60 characters."""
    text = repr(raw)
    return text if len(text) <= 60 else text[:57] + "..."


def printable(text: str) -> str:
    """Text without control characters, so that a name cannot steer a terminal."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


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


def _first_problem(error: BaseException, also: Sequence[str]) -> tuple[list[str | int], str]:
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
        takes = [f.name for f in fields(cast(Any, error.cl))] + ([] if path else list(also))
        wrong = sorted(error.extra_fields)[0]
        near = difflib.get_close_matches(wrong, takes, n=1)
        hint = f"it takes '{near[0]}'" if near else f"it takes {', '.join(takes) or 'no keys'}"
        return path, f"unknown {wrong!r}; {hint}"
    if isinstance(error, KeyError):
        return path, "missing"
    # What the generated reader says of a value that is no table.
    if re.search(r"object (has no|is not)|argument of type .* is not", str(error)):
        return path, "expected a table"
    choices = re.search(r"(.*) not in literal typing\.Literal\[(.*)\]", str(error))
    if choices:
        return path, f"expected one of {choices[2]}, got '{choices[1]}'"
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
