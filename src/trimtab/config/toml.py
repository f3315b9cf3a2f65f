"""TOML files and settings from the command line, read as plain tables; and tables written as TOML."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import tomli_w

from trimtab.config.text import shown, to_plain

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


def _without_none(value: object) -> object:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in cast(Raw, value).items() if v is not None}
    if isinstance(value, list):
        return [_without_none(item) for item in cast("list[object]", value)]
    return value
