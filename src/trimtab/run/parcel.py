"""A run folder on its way from a machine that does not see the study folder: its files with their hashes."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from trimtab.run.files import IntegrityError, sync_folder

Files = Mapping[str, tuple[bytes, str]]  # content and SHA-256 by relative path


def packed(run: Path) -> Files:
    """The files of a run folder with their hashes."""
    files = sorted(path for path in run.rglob("*") if path.is_file())
    contents = {str(path.relative_to(run)): path.read_bytes() for path in files}
    return {name: (content, hashlib.sha256(content).hexdigest()) for name, content in contents.items()}


def receive(files: Files, run: Path) -> None:
    """Write the files of a run that was trained elsewhere; the run folder appears at once and whole.

    Raises:
        IntegrityError: if a file differs from its hash, or a name leads out of the folder. Nothing was written.
    """
    for name, (content, digest) in files.items():
        if hashlib.sha256(content).hexdigest() != digest:
            raise IntegrityError(f"{run / name}: changed on its way from the worker")
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise IntegrityError(f"{run}: a worker sent a file named '{name}'")
    run.parent.mkdir(parents=True, exist_ok=True)
    incoming = Path(tempfile.mkdtemp(prefix=".incoming-", dir=run.parent))
    try:
        for name, (content, _) in files.items():
            (incoming / name).parent.mkdir(parents=True, exist_ok=True)
            with (incoming / name).open("wb") as file:
                file.write(content)
                os.fsync(file.fileno())
        incoming.chmod(0o755)
        shutil.rmtree(run, ignore_errors=True)
        incoming.rename(run)
        sync_folder(run.parent)
    finally:
        shutil.rmtree(incoming, ignore_errors=True)
