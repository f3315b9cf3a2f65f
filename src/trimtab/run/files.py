"""Files written whole or not at all, and hashes of what was written.

A file is written under an unpredictable name that is made exclusively, synchronised, and renamed, so that no link that
somebody planted is followed and no reader meets half a file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

PIECE = 1 << 20


class IntegrityError(RuntimeError):
    """A stored file does not match its record; the message names it and the remedy."""


def write_whole(path: Path, text: str) -> None:
    """Replace a text file atomically and durably; a link in its place is replaced, not followed."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file atomically and durably; a link in its place is replaced, not followed."""
    number, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(number, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def write_json(path: Path, value: object) -> None:
    """Write a JSON file whole or not at all."""
    write_whole(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_sealed(path: Path, record: Mapping[str, object]) -> None:
    """Write a JSON file that carries the SHA-256 of its own content."""
    write_json(path, {**record, "sha256": _own_hash(record)})


def read_sealed(path: Path, remedy: str) -> dict[str, Any]:
    """The content of a file of ``write_sealed``.

    Raises:
        IntegrityError: if it is no such file or was changed.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict):
            raise IntegrityError(f"{path}: damaged (not an object); {remedy}")
        record = cast("dict[str, Any]", record)
        seal = record.pop("sha256", None)
        if seal != _own_hash(record):
            raise IntegrityError(f"{path}: its own SHA-256 differs; {remedy}")
    except (ValueError, TypeError, RecursionError) as error:
        raise IntegrityError(f"{path}: damaged ({type(error).__name__}: {error}); {remedy}") from error
    return record


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def hash_of(path: Path) -> str:
    """SHA-256 of a plain file, in hexadecimal.

    Raises:
        IntegrityError: if it is a link, a pipe, a device or a folder: reading those may block or lead elsewhere.
    """
    digest = hashlib.sha256()
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    with os.fdopen(number, "rb") as file:
        if not stat.S_ISREG(os.fstat(number).st_mode):
            raise IntegrityError(f"{path}: not a plain file")
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def encode_number(value: Any) -> Any:
    """JSON has no NaN or infinity: they are written as text."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def decode_number(value: Any) -> Any:
    """The inverse of ``encode_number``."""
    return float(value) if isinstance(value, str) and value in ("nan", "inf", "-inf") else value


def _own_hash(record: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
