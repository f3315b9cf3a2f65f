"""The lock of a study folder. The operating system releases it when the process ends for any reason."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from types import TracebackType

LOCK = ".lock"


class StudyLockedError(RuntimeError):
    """Another live process has locked the study folder."""


class StudyLock:
    """The lock of one study folder, held inside a ``with`` block.

    Raises:
        StudyLockedError: on entry, if another live process has locked the folder.
        OSError: on entry, if the lock file cannot be created, or is a link.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = -1

    def __enter__(self) -> StudyLock:
        # A link is refused, because the file that it points to would be overwritten.
        file = self.folder / LOCK
        if file.is_symlink():
            raise OSError(errno.ELOOP, f"{LOCK} is a link; delete it")
        number = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(number, 32).decode("utf-8", errors="replace").strip() or "unknown"
            os.close(number)
            raise StudyLockedError(
                f"{self.folder}: process {owner} is working on this study; wait for it, or use another --out"
            ) from None
        os.ftruncate(number, 0)
        os.write(number, str(os.getpid()).encode())
        self._file = number
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)
