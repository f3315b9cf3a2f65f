"""The lease of a study: a file that names its driver, on any shared file system.

Every change of the file is a comparison and an exchange: a process says what it read and what it wants to write, and
the change is made only if the file still holds the former. One process at a time does that, the one that created a
second file exclusively. A plain rename would not do: a driver that judged an old lease dead could be slow to act, and
move the new lease of a driver that was faster.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import uuid
from collections.abc import Generator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trimtab.run.files import write_whole

LEASE = ".driver.json"
CHANGING = ".driver.changing"
WAIT_SECONDS = 5.0


class StudyLockedError(RuntimeError):
    """Another live process has locked the study folder."""


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


def this_driver() -> Driver:
    """This process as a driver, with a new token."""
    return Driver(socket.gethostname(), this_boot(), os.getpid(), uuid.uuid4().hex, time.time())


def this_boot() -> str:
    """Identity of the running kernel; that of the network card without ``/proc``."""
    return text_of(Path("/proc/sys/kernel/random/boot_id")).strip() or f"{uuid.getnode():x}"


def read_driver(folder: Path) -> Driver | None:
    """Who drives a study, or drove it until it was killed; None if nobody does."""
    return parse_driver(text_of(folder / LEASE))


def read_lease(folder: Path) -> str:
    """The text of the lease; empty if there is none.

    Raises:
        OSError: if the file is there and cannot be read: it may be the lease of a live driver.
    """
    try:
        return (folder / LEASE).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def parse_driver(text: str) -> Driver | None:
    """The driver that the text of a lease names; None if it names none."""
    try:
        return Driver(**json.loads(text))
    except (ValueError, TypeError):
        return None


def exchange(folder: Path, before: str, driver: Driver | None, *, alone_on_host: bool) -> bool:
    """Write the lease of a driver, or none, if the file still reads as before; returns whether it did.

    Args:
        folder: the study folder.
        before: the text that the caller read; empty if there was no file.
        driver: the driver to write; None removes the file.
        alone_on_host: whether no other process of this host can be here. If so, what a killed process of this host
            left behind is removed.

    Raises:
        StudyLockedError: if another process began a change and did not end it.
        OSError: if the lease cannot be read or written.
    """
    with _alone(folder, alone_on_host):
        if read_lease(folder) != before:
            return False
        if driver is None:
            (folder / LEASE).unlink(missing_ok=True)
        else:
            write_whole(folder / LEASE, json.dumps(asdict(driver)))
        return True


def text_of(file: Path) -> str:
    """The text of a file; empty if it cannot be read."""
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


@contextlib.contextmanager
def _alone(folder: Path, alone_on_host: bool) -> Generator[None]:
    file = folder / CHANGING
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            number = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
            break
        except FileExistsError:
            if alone_on_host and text_of(file) == this_boot():
                file.unlink(missing_ok=True)
            elif time.monotonic() > deadline:
                raise StudyLockedError(
                    f"{file}: another process began to take this study over, or to end it; try again, and delete this "
                    f"file if it is still there"
                ) from None
            else:
                time.sleep(0.02)
    try:
        with os.fdopen(number, "w") as mark:
            mark.write(this_boot())
        yield
    finally:
        file.unlink(missing_ok=True)
