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
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from trimtab.run.files import write_whole

LOCK = ".lock"
LEASE = ".driver.json"
STOP = ".stop"
RENEW_SECONDS = 5.0
LEASE_SECONDS = 30.0
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


class StudyLockedError(RuntimeError):
    """Another live process has locked the study folder."""


class StudyStoppedError(RuntimeError):
    """Somebody asked this driver to stop, with ``trimtab stop``."""


@dataclass(frozen=True, slots=True)
class Driver:
    """Who drives a study.

    Attributes:
        boot: identity of the running kernel, which tells apart hosts of one name.
        executor: the executor with its options, as a table of one key.
        capacity: number of runs that the executor wants unfinished.
        round: the name of the current round.
    """

    host: str
    boot: str
    pid: int
    token: str
    since: float
    executor: Mapping[str, Any] = field(default_factory=dict[str, Any])
    capacity: int = 0
    round: str = ""


class StudyLock:
    """The lock of one study folder, held inside a ``with`` block.

    Raises:
        StudyLockedError: on entry, if another live process has locked the folder.
        OSError: on entry, if the lock file cannot be created, or is a link.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.driver = Driver(socket.gethostname(), _boot(), os.getpid(), uuid.uuid4().hex, time.time())
        self._file = -1
        self._locks = True  # whether the file system has locks
        self._ended = threading.Event()
        self._looked = 0.0

    def describe(self, executor: Mapping[str, Any], capacity: int, round_: str = "") -> None:
        """Record what the driver does, for ``trimtab status``."""
        self.driver = replace(self.driver, executor=executor, capacity=capacity, round=round_)
        self.check()
        write_whole(self.folder / LEASE, json.dumps(asdict(self.driver)))

    def check(self) -> None:
        """Whether this process may go on; cheap enough for every poll.

        Raises:
            StudyStoppedError: if ``trimtab stop`` named this driver.
            StudyLockedError: if another driver took the lease over.
        """
        if (self.folder / STOP).exists() and _text(self.folder / STOP) == self.driver.token:
            raise StudyStoppedError(f"{self.folder}: stopped by 'trimtab stop'; the same command continues the study")
        now = time.monotonic()
        if now - self._looked >= RENEW_SECONDS:
            self._looked = now
            holder = read_driver(self.folder)
            if holder is not None and holder.token != self.driver.token:
                raise StudyLockedError(
                    f"{self.folder}: process {holder.pid} on {holder.host} took this study over, because this one did "
                    f"not show itself for {LEASE_SECONDS:.0f} s"
                )

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
        holder = read_driver(self.folder)
        if holder is not None and holder.token == self.driver.token:
            for name in (LEASE, STOP):
                with contextlib.suppress(OSError):
                    (self.folder / name).unlink()
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
        file = self.folder / LEASE
        while True:
            holder = read_driver(self.folder)
            if file.exists():
                if holder is not None and self._lives(holder, file):
                    raise StudyLockedError(
                        f"{self.folder}: process {holder.pid} on {holder.host} is working on this study; wait for it, "
                        f"run 'trimtab stop {self.folder}', or use another --out"
                    )
                # Of several drivers that find the same old lease, only one can rename it.
                with contextlib.suppress(FileNotFoundError):
                    old = file.rename(file.with_name(f"{LEASE}.{self.driver.token}"))
                    old.unlink()
            with contextlib.suppress(FileExistsError):
                number = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
                with os.fdopen(number, "w") as lease:
                    json.dump(asdict(self.driver), lease)
                return

    def _lives(self, holder: Driver, lease: Path) -> bool:
        """Whether the holder of a lease lives; looks at a lease of another host for a while."""
        if holder.boot == _boot():
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
            with contextlib.suppress(OSError):  # a file system that fails for a moment
                os.utime(self.folder / LEASE)


def read_driver(folder: Path) -> Driver | None:
    """Who drives a study, or drove it until it was killed; None if nobody does."""
    try:
        return Driver(**json.loads((folder / LEASE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def is_driven(folder: Path) -> bool:
    """Whether a process drives the study now. Writes nothing; for another host, up to ``LEASE_SECONDS`` late."""
    driver = read_driver(folder)
    if driver is None:
        return False
    if driver.boot == _boot():
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


def _boot() -> str:
    """Identity of the running kernel; that of the network card without ``/proc``."""
    return _text(Path("/proc/sys/kernel/random/boot_id")).strip() or f"{uuid.getnode():x}"


def _process_lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError:
        return ""
