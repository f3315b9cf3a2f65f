"""The folder of a study: made or recognised before anything is trained, and marked with what it is of."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import cast

from trimtab.config import ConfigError, Raw, canonical, dump_toml
from trimtab.run.folder import write_whole
from trimtab.study.kinds import AnySpec


class StorageError(OSError):
    """A folder cannot be written; what was finished before is whole, and the same command goes on from there."""


def open_folder(spec: AnySpec, folder: Path) -> None:
    """Make the study folder, or check that the one there belongs to this study.

    Raises:
        ConfigError: if it holds other things, or a study of another protocol.
        StorageError: if it cannot be made or written.
    """
    protocol = folder / "protocol.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise StorageError(f"{folder}: not writable; use another --out")
        if not protocol.exists():
            # Another driver may just have begun: what it makes first is no stranger.
            strangers = [e.name for e in folder.iterdir() if not e.name.startswith((".", "study."))]
            if strangers:
                raise ConfigError(
                    f"{folder}: not a study folder, yet it holds {sorted(strangers)[0]}; use another --out"
                )
            return
        stored = protocol.read_text(encoding="utf-8", errors="replace")
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(f"{folder}: a file is in the way; use another --out") from error
    except OSError as error:
        raise StorageError(f"{folder}: {error.strerror or error}; use another --out") from error
    difference = _first_difference(stored, spec.fixed())
    if difference:
        raise ConfigError(f"{folder}: holds a study of another protocol ({difference}); use another --out")


def claim(spec: AnySpec, folder: Path) -> None:
    """Write down what study the folder is of."""
    write_whole(folder / "protocol.json", canonical(spec.fixed()) + "\n")
    write_whole(folder / "study.toml", dump_toml(spec.table()))


def _first_difference(stored: str, wanted: Raw) -> str:
    try:
        old: object = json.loads(stored)
    except ValueError:
        return "its protocol.json is damaged"
    new: object = json.loads(canonical(wanted))
    if old == new:
        return ""
    path: list[str] = []
    while isinstance(old, dict) and isinstance(new, dict):
        before, after = cast(Raw, old), cast(Raw, new)
        key = next(k for k in sorted({*before, *after}) if before.get(k) != after.get(k))
        path.append(key)
        old, new = before.get(key), after.get(key)
    return f"{'.'.join(path) or 'protocol.json'} is {canonical(old)} there and {canonical(new)} here"
