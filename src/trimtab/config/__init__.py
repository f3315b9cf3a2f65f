"""TOML files and frozen dataclasses: strict reading, whose errors name the file, the key and the remedy."""

from __future__ import annotations

from trimtab.config.reader import Reader
from trimtab.config.text import canonical, canonical_plain, dotted, json_line, printable, shown, to_plain, unknown
from trimtab.config.toml import LARGEST_FILE, apply_settings, dump_toml, load_toml, merge
from trimtab.config.values import ConfigError, Raw, Settings

__all__ = [
    "LARGEST_FILE",
    "ConfigError",
    "Raw",
    "Reader",
    "Settings",
    "apply_settings",
    "canonical",
    "canonical_plain",
    "dotted",
    "dump_toml",
    "json_line",
    "load_toml",
    "merge",
    "printable",
    "shown",
    "to_plain",
    "unknown",
]
