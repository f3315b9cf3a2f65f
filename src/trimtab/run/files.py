"""Atomic writes of files, and hashes of their content.

A file is created exclusively under an unpredictable temporary name, synchronised to disk, and renamed. Therefore a
symbolic link at the target is never followed, and a reader never sees a partial file.
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
    """Replace a text file atomically and durably. A link at ``path`` is replaced, not followed."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file atomically and durably. A link at ``path`` is replaced, not followed."""
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
    """Write a JSON file atomically."""
    write_whole(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_sealed(path: Path, record: Mapping[str, object]) -> None:
    """Write a JSON file that contains the SHA-256 of its content."""
    write_json(path, {**record, "sha256": _own_hash(record)})


def read_sealed(path: Path, remedy: str) -> dict[str, Any]:
    """The content of a file that ``write_sealed`` wrote.

    Raises:
        IntegrityError: if ``write_sealed`` did not write the file, or the file was changed.
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
        IntegrityError: if it is a pipe or a device, because reading it may block.
        OSError: if it is a folder, or a link, which could point to another place, or it cannot be read.
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
    """Convert NaN and infinity to text, because JSON cannot represent them."""
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
