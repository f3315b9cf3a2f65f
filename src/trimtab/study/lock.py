"""The right to drive a study: one process at a time, on any host that sees the folder.

On one host the operating system keeps the lock and releases it when the process ends for any reason. Not every shared
file system passes such locks between hosts. Therefore the driver also keeps a *lease*, a file that it renews every few
seconds. A driver on another host waits for a renewal before it takes the lease over, and compares only times of the
same file, so that clocks may differ. A driver that was suspended and lost its lease stops when it wakes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from trimtab.run.files import write_whole
from trimtab.study.lease import (
    LEASE,
    Driver,
    StudyLockedError,
    exchange,
    parse_driver,
    read_driver,
    read_lease,
    text_of,
    this_boot,
    this_driver,
)

LOCK = ".lock"
STOP = ".stop"
RENEW_SECONDS = 5.0
LEASE_SECONDS = 30.0
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


class StudyStoppedError(RuntimeError):
    """Somebody asked this driver to stop, with ``trimtab stop``."""


class StudyLock:
    """The lock of one study folder, held inside a ``with`` block.

    Raises:
        StudyLockedError: on entry, if another live process has locked the folder.
        OSError: on entry, if the lock file cannot be created, or is a link.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.driver = this_driver()
        self._file = -1
        self._locks = True  # whether the file system has locks
        self._ended = threading.Event()
        self._looked = 0.0

    def describe(self, executor: Mapping[str, Any], capacity: int, round_: str = "") -> None:
        """Record what the driver does, for ``trimtab status``."""
        self.check()
        before = self._look()
        self.driver = replace(self.driver, executor=executor, capacity=capacity, round=round_)
        if not exchange(self.folder, before, self.driver, alone_on_host=self._locks):
            self._look()

    def check(self) -> None:
        """Whether this process may go on; cheap enough for every poll.

        Raises:
            StudyStoppedError: if ``trimtab stop`` named this driver.
            StudyLockedError: if another driver took the lease over.
        """
        if (self.folder / STOP).exists() and text_of(self.folder / STOP) == self.driver.token:
            raise StudyStoppedError(f"{self.folder}: stopped by 'trimtab stop'; the same command continues the study")
        now = time.monotonic()
        if now - self._looked >= RENEW_SECONDS:
            self._looked = now
            self._look()

    def __enter__(self) -> StudyLock:
        self._lock_file()
        try:
            self._take_lease()
        except BaseException:
            os.close(self._file)
            raise
        threading.Thread(target=self._renew, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        # A lease that cannot be removed is taken over like that of a driver that was killed.
        with contextlib.suppress(OSError, StudyLockedError):
            if text_of(self.folder / STOP) == self.driver.token:
                (self.folder / STOP).unlink(missing_ok=True)
            exchange(self.folder, self._look(), None, alone_on_host=self._locks)
        os.close(self._file)

    def _lock_file(self) -> None:
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
        except OSError as error:
            if error.errno not in NO_LOCKS:  # without locks of the file system, the lease alone decides
                os.close(number)
                raise
            self._locks = False
        os.ftruncate(number, 0)
        os.write(number, str(os.getpid()).encode())
        self._file = number

    def _take_lease(self) -> None:
        while True:
            before = read_lease(self.folder)
            holder = parse_driver(before)
            if holder is not None and self._lives(holder, self.folder / LEASE):
                raise StudyLockedError(
                    f"{self.folder}: process {holder.pid} on {holder.host} is working on this study; wait for it, "
                    f"run 'trimtab stop {self.folder}', or use another --out"
                )
            if exchange(self.folder, before, self.driver, alone_on_host=self._locks):
                return

    def _look(self) -> str:
        """The text of the lease, of this driver or of nobody; refused if it is another's."""
        lease = text_of(self.folder / LEASE)
        holder = parse_driver(lease)
        if holder is not None and holder.token != self.driver.token:
            raise StudyLockedError(
                f"{self.folder}: process {holder.pid} on {holder.host} took this study over, because this one did "
                f"not show itself for {LEASE_SECONDS:.0f} s"
            )
        return lease

    def _lives(self, holder: Driver, lease: Path) -> bool:
        """Whether the holder of a lease lives; looks at a lease of another host for a while."""
        if holder.boot == this_boot():
            return not self._locks and _process_lives(holder.pid)  # with locks, its lock would have been met
        try:
            before = lease.stat().st_mtime_ns
            deadline = time.monotonic() + LEASE_SECONDS
            while time.monotonic() < deadline:
                time.sleep(min(1.0, LEASE_SECONDS / 10))
                if lease.stat().st_mtime_ns != before:
                    return True
        except FileNotFoundError:  # it ended meanwhile
            return False
        return False

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_SECONDS):
            # The lease of another driver is not renewed; a file system may fail for a moment.
            with contextlib.suppress(OSError, StudyLockedError):
                self._look()
                os.utime(self.folder / LEASE)


def is_driven(folder: Path) -> bool:
    """Whether a process drives the study now. Writes nothing; for another host, up to ``LEASE_SECONDS`` late."""
    driver = read_driver(folder)
    if driver is None:
        return False
    if driver.boot == this_boot():
        return _is_locked(folder / LOCK, driver.pid)
    with contextlib.suppress(OSError):
        return time.time() - (folder / LEASE).stat().st_mtime < LEASE_SECONDS
    return False


def ask_to_stop(folder: Path) -> Driver | None:
    """Ask the driver of a study to stop; returns it, or None if nobody drives the study."""
    driver = read_driver(folder)
    if driver is None or not is_driven(folder):
        return None
    write_whole(folder / STOP, driver.token)
    return driver


def _is_locked(file: Path, pid: int) -> bool:
    try:
        number = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(number, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return _process_lives(pid)
    finally:
        os.close(number)
    return False


def _process_lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
