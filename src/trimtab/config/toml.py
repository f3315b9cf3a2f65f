"""TOML files and settings of the command line, read as plain tables; tables written as TOML."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import tomli_w

from trimtab.config.text import shortened, shown, to_plain
from trimtab.config.values import DEEPEST, ConfigError, Raw, refuse_unusable, without_surrogates

LARGEST_FILE = 1 << 20

# A bare or a quoted key, as in TOML, without escapes.
_KEY = r"""(?:[A-Za-z0-9_-]++|"[^"\\\x00-\x1f\x7f]*+"|'[^'\x00-\x1f\x7f]*+')"""
# tomllib takes time that grows with the square of the number of parts, so long keys are refused before it reads them.
_LONG_KEY = re.compile(rf"""(?<![A-Za-z0-9_.\-"']){_KEY}(?:[ \t]*+\.[ \t]*+{_KEY}){{{DEEPEST}}}""")
# Python converts at most 4,300 digits by default; 64 bits are 19.
_LONG_NUMBER = re.compile(r"\d[\d_]{4299}")


def load_toml(path: Path) -> Raw:
    """Read a TOML file.

    Raises:
        ConfigError: if the file is missing, larger than 1 MiB, not UTF-8 or not TOML, or if it holds a whole number of
            more than 64 bits or tables nested more than 64 deep.
    """
    try:
        if not path.is_file():
            raise ConfigError(f"{path}: no such file, or not a plain file")
        if path.stat().st_size > LARGEST_FILE:
            raise ConfigError(f"{path}: the file is larger than 1 MiB, so it is not a config file")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    long_key = _LONG_KEY.search(text)
    if long_key is not None:
        where = f"line {_line(text, long_key)}: the key {shortened(long_key[0])}"
        raise ConfigError(f"{path}: {where} has more than {DEEPEST} parts; use a shorter key")
    try:
        tables = tomllib.loads(text)
    except RecursionError as error:
        raise ConfigError(f"{path}: not valid TOML: nested too deeply; at most {DEEPEST} levels are allowed") from error
    except ValueError as error:
        number = _LONG_NUMBER.search(text)
        if isinstance(error, tomllib.TOMLDecodeError) or number is None:
            raise ConfigError(f"{path}: not valid TOML: {error}") from error
        where = f"line {_line(text, number)}: {shortened(number[0])}"
        raise ConfigError(f"{path}: not valid TOML: {where} has more than 64 bits; use a smaller number") from error
    refuse_unusable(tables, str(path))
    return tables


def _line(text: str, match: re.Match[str]) -> int:
    return text.count("\n", 0, match.start()) + 1


def dump_toml(value: object) -> str:
    """A dataclass or mapping as TOML; keys whose value is None are left out.

    Raises:
        ConfigError: if TOML or UTF-8 cannot hold a value.
    """
    where = "cannot be written as TOML"
    try:
        plain = _without_none(to_plain(value))
    except RecursionError as error:
        raise ConfigError(f"{where}: nested too deeply; at most {DEEPEST} levels are allowed") from error
    refuse_unusable(plain, where)
    return tomli_w.dumps(cast(Raw, plain))


def _without_none(value: object) -> object:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in cast(Raw, value).items() if v is not None}
    if isinstance(value, list):
        return [_without_none(item) for item in cast("list[object]", value)]
    return value


def apply_settings(raw: Raw, settings: Sequence[str]) -> Raw:
    """A copy of ``raw`` with each ``a.b=value`` set; a value that is not TOML counts as a string.

    Raises:
        ConfigError: if a setting has no ``=``, goes through a key that is not a table, is not UTF-8, or holds a whole
            number of more than 64 bits, a key of more than 64 parts or tables nested more than 64 deep.
    """
    refuse_unusable(raw, "")
    changed = cast(Raw, json.loads(json.dumps(raw, default=str)))
    for setting in settings:
        keys, value = _setting(setting)
        table: Any = changed
        for key in keys[:-1]:
            table = table.setdefault(key, {})
            if not isinstance(table, dict):
                raise ConfigError(f"--set {shortened(setting)}: '{shortened(key)}' is not a table")
        table[keys[-1]] = value
    return changed


def _setting(setting: str) -> tuple[list[str], object]:
    """Keys and value of ``a."b c".d=value``."""
    if without_surrogates(setting) != setting:
        raise ConfigError(f"--set {shown(setting)}: the setting is not valid UTF-8; write it in UTF-8")
    key = re.match(rf"\s*({_KEY}(?:\.{_KEY})*+)\s*=", setting)
    if key is None:
        raise ConfigError(f"--set {shown(setting)}: expected KEY=VALUE, such as training.steps=200")
    where = f"--set {shortened(key[1])}"
    keys = [part[1:-1] if part[0] in "\"'" else part for part in re.findall(_KEY, key[1])]
    if len(keys) > DEEPEST:
        raise ConfigError(f"{where}: the key has {len(keys)} parts, but at most {DEEPEST} are allowed")
    text = setting[key.end() :].strip()
    if _LONG_KEY.search(text) is not None:
        raise ConfigError(f"{where}: a key inside {shown(text)} has more than {DEEPEST} parts; use a shorter key")
    try:
        parsed = tomllib.loads(f"value = {text}")
        value: object = parsed["value"] if list(parsed) == ["value"] else text
    except tomllib.TOMLDecodeError:
        value = text
    except RecursionError as error:
        problem = f"{shown(text)} is nested too deeply; at most {DEEPEST} levels are allowed"
        raise ConfigError(f"{where}: {problem}") from error
    except ValueError as error:
        raise ConfigError(f"{where}: {shown(text)} has more than 64 bits; use a smaller number") from error
    refuse_unusable(value, "--set", keys)
    return keys, value


def merge(base: Raw, over: Mapping[str, Any]) -> Raw:
    """``base`` with the tables of ``over`` laid over it, key by key; lists and values replace.

    Raises:
        ConfigError: if ``over`` holds a value that no config file can hold.
    """
    refuse_unusable(dict(over), "")
    return _merged(base, over)


def _merged(base: Raw, over: Mapping[str, Any]) -> Raw:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        both_tables = isinstance(value, dict) and isinstance(below, dict)
        merged[key] = _merged(cast(Raw, below), cast(Raw, value)) if both_tables else value
    return merged
