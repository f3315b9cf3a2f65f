"""The folder of a study: it is created or checked before anything is trained."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from trimtab.config import ConfigError, Raw, canonical, dump_toml, load_toml
from trimtab.run.files import write_whole
from trimtab.run.identity import settled
from trimtab.study.index import INDEX, STUDY, Index, load_index
from trimtab.study.kind import read_any_study
from trimtab.study.specification import StudySpec
from trimtab.study.stored import migrated


class StorageError(OSError):
    """A folder cannot be written. Finished runs are complete, and the same command continues the study."""


def make_folder(folder: Path) -> None:
    """Create the study folder, or check that the existing folder is a study folder or empty.

    Raises:
        ConfigError: if the folder holds other files, or a file has its name.
        StorageError: if the folder cannot be created or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise StorageError(f"{folder}: not writable; use another --out")
        if not any((folder / name).exists() for name in (INDEX, STUDY)):
            # Hidden files may belong to another driver that has just started.
            others = [entry.name for entry in folder.iterdir() if not entry.name.startswith(".")]
            if others:
                raise ConfigError(
                    f"{folder}: not a study folder, because it holds {sorted(others)[0]}; use another --out"
                )
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(f"{folder}: a file is in the way; use another --out") from error
    except OSError as error:
        raise StorageError(f"{folder}: {error.strerror or error}; use another --out") from error


def open_index(spec: StudySpec, folder: Path) -> Index:
    """The index of the folder, if the study equals or extends the stored study. Nothing is written.

    Raises:
        ConfigError: if the folder holds a study of another kind or protocol, or an arm of the same name differs.
        IntegrityError: if the index is damaged, or study.toml was changed.
    """
    if (folder / INDEX).exists():
        index = load_index(folder)
    elif (folder / STUDY).exists() and (folder / "runs").is_dir():
        index = migrated(folder)
    else:
        return Index(dump_toml(spec.table()))
    if index.study == dump_toml(spec.table()):
        return index
    stored = read_any_study(_table(index.study, folder), str(folder / STUDY))
    if stored.kind != spec.kind:
        raise ConfigError(f"{folder}: holds a study of kind {stored.kind}, this is {spec.kind}; use another --out")
    difference = first_difference(stored.fixed(), spec.fixed())
    if difference:
        raise ConfigError(f"{folder}: holds a study of another protocol ({difference}); use another --out")
    for name in spec.arms:
        if name in stored.arms:
            before, after = (settled(study.arms[name].run(0, 0)) for study in (stored, spec))
            difference = first_difference(before, after)
            if difference:
                raise ConfigError(
                    f"{folder}: arm '{name}' is another one there ({difference}); give the new arm another name"
                )
    return index


def write_study(spec: StudySpec, folder: Path, index: Index) -> None:
    """Write study.toml and the index, before the study continues."""
    text = dump_toml(spec.table())
    if index.study != text:
        index.extend(folder, text)
    else:
        index.complete = False
        index.save(folder)
        if not (folder / STUDY).exists():
            write_whole(folder / STUDY, text)


def first_difference(old: Mapping[str, object], new: Mapping[str, object]) -> str:
    """The first difference in words, such as 'training.steps is 300 there and 400 here'; "" if there is none."""
    before: object = json.loads(canonical(old))
    after: object = json.loads(canonical(new))
    if before == after:
        return ""
    path: list[str] = []
    while isinstance(before, dict) and isinstance(after, dict):
        there, here = cast(Raw, before), cast(Raw, after)
        key = next(k for k in sorted({*there, *here}) if there.get(k) != here.get(k))
        path.append(key)
        before = there.get(key)
        after = here.get(key)
    return f"{'.'.join(path)} is {canonical(before)} there and {canonical(after)} here"


def _table(text: str, folder: Path) -> Raw:
    file = folder / STUDY
    if file.exists():
        return load_toml(file)
    import tomllib

    return tomllib.loads(text)
