"""One driver at a time, on any host, with and without locks of the file system."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from trimtab.study import lease, lock
from trimtab.study.lease import CHANGING, LEASE, Driver, StudyLockedError, read_driver
from trimtab.study.lock import StudyLock, StudyStoppedError, ask_to_stop, is_driven


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.1)
    monkeypatch.setattr(lock, "LEASE_SECONDS", 0.8)
    monkeypatch.setattr(lease, "WAIT_SECONDS", 0.3)


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shared file system without flock."""

    def refuse(number: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)


def lease_of(folder: Path, **changes: Any) -> None:
    """Leave the lease of another driver."""
    record = dataclasses.asdict(StudyLock(folder).driver) | changes
    (folder / LEASE).write_text(json.dumps(record))


def test_a_second_driver_on_this_host_is_refused(tmp_path: Path) -> None:
    with StudyLock(tmp_path), pytest.raises(StudyLockedError, match=str(os.getpid())), StudyLock(tmp_path):
        pass


def test_the_lock_leaves_no_lease(tmp_path: Path) -> None:
    with StudyLock(tmp_path):
        assert is_driven(tmp_path)
    assert read_driver(tmp_path) is None
    assert not is_driven(tmp_path)


def test_the_lease_of_a_process_that_was_killed_here_is_taken_over_at_once(tmp_path: Path) -> None:
    lease_of(tmp_path, pid=1)  # its number lives, as after a wrap-around: the lock of the file system decides
    started = time.monotonic()
    with StudyLock(tmp_path):
        assert time.monotonic() - started < 0.5
        assert read_driver(tmp_path).pid == os.getpid()  # type: ignore[union-attr]


@pytest.mark.usefixtures("no_locks")
def test_without_locks_a_live_process_keeps_its_study(tmp_path: Path) -> None:
    lease_of(tmp_path, pid=1)
    with pytest.raises(StudyLockedError, match="process 1"), StudyLock(tmp_path):
        pass


@pytest.mark.usefixtures("no_locks")
def test_without_locks_a_dead_process_loses_it(tmp_path: Path) -> None:
    lease_of(tmp_path, pid=2**22 + 1)  # no such process
    with StudyLock(tmp_path):
        pass


def test_another_host_that_renews_its_lease_keeps_the_study(tmp_path: Path) -> None:
    lease_of(tmp_path, host="login-2", boot="another")
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(0.1):
            os.utime(tmp_path / LEASE)

    threading.Thread(target=renew).start()
    try:
        with pytest.raises(StudyLockedError, match="login-2"), StudyLock(tmp_path):
            pass
    finally:
        ended.set()


def test_another_host_that_is_silent_loses_the_study_however_wrong_its_clock_is(tmp_path: Path) -> None:
    lease_of(tmp_path, host="login-2", boot="another")
    ahead = time.time() + 86_400
    os.utime(tmp_path / LEASE, (ahead, ahead))
    started = time.monotonic()
    with StudyLock(tmp_path) as held:
        assert time.monotonic() - started >= 0.7
        held.check()


@pytest.mark.usefixtures("no_locks")
def test_of_many_drivers_that_find_an_old_lease_one_gets_it(tmp_path: Path) -> None:
    lease_of(tmp_path, host="login-2", boot="another")
    won: list[str] = []
    refused: list[str] = []
    inside = threading.Barrier(8)

    def drive(number: int) -> None:
        one = StudyLock(tmp_path)
        one.driver = dataclasses.replace(one.driver, boot=f"host {number}")
        inside.wait()
        try:
            with one:
                won.append(one.driver.boot)
                time.sleep(2.5)  # longer than the others look
                one.check()
        except StudyLockedError:
            refused.append(one.driver.boot)

    threads = [threading.Thread(target=drive, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert len(refused) == 7


@pytest.mark.usefixtures("no_locks")
def test_a_driver_slow_to_take_an_old_lease_over_leaves_the_new_one_alone(tmp_path: Path) -> None:
    lease_of(tmp_path, host="login-2", boot="another")
    faster = StudyLock(tmp_path)
    faster.driver = dataclasses.replace(faster.driver, host="login-3", boot="a third")
    looked: list[str] = []

    class Slow(StudyLock):
        def _lives(self, holder: Driver, lease: Path) -> bool:
            looked.append(holder.host)
            if holder.host == "login-2":
                faster.__enter__()  # between the verdict on the old lease and its consequence
                return False
            return super()._lives(holder, lease)

    with pytest.raises(StudyLockedError, match="login-3"), Slow(tmp_path):
        pass
    assert looked == ["login-2", "login-3"]
    faster.check()
    faster.__exit__(None, None, None)
    assert read_driver(tmp_path) is None


def test_a_lease_that_cannot_be_read_is_not_taken_for_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lease_of(tmp_path, host="login-2", boot="another")
    before = (tmp_path / LEASE).read_text()
    read = Path.read_text

    def fails(path: Path, *args: Any, **options: Any) -> str:
        if path.name == LEASE:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return read(path, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", fails)
        with pytest.raises(OSError, match=os.strerror(errno.ESTALE)), StudyLock(tmp_path):
            pass
    assert (tmp_path / LEASE).read_text() == before
    assert not (tmp_path / CHANGING).exists()


def test_a_lease_of_damaged_bytes_is_replaced(tmp_path: Path) -> None:
    (tmp_path / LEASE).write_bytes(b"\xff\xfe{")
    with StudyLock(tmp_path) as held:
        assert read_driver(tmp_path) == held.driver


def test_a_change_that_another_process_has_begun_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / CHANGING).write_text("another kernel")
    threading.Timer(0.1, (tmp_path / CHANGING).unlink).start()
    with StudyLock(tmp_path) as held:
        assert read_driver(tmp_path) == held.driver


def test_a_change_that_another_host_never_ended_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / CHANGING).write_text("another kernel")
    with pytest.raises(StudyLockedError, match=f"{CHANGING}: .* delete this file"), StudyLock(tmp_path):
        pass
    assert read_driver(tmp_path) is None
    (tmp_path / CHANGING).unlink()
    with StudyLock(tmp_path):
        pass


def test_a_change_that_a_killed_process_of_this_host_began_hinders_nobody(tmp_path: Path) -> None:
    (tmp_path / CHANGING).write_text(lease.this_boot())
    with StudyLock(tmp_path):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [lock.LOCK]


def test_a_driver_that_wakes_neither_renews_nor_removes_the_lease_of_another(tmp_path: Path) -> None:
    with StudyLock(tmp_path):
        lease_of(tmp_path, host="login-2", boot="another", token="other")
        os.utime(tmp_path / LEASE, (1e9, 1e9))
        time.sleep(0.25)  # two renewals
    assert read_driver(tmp_path).host == "login-2"  # type: ignore[union-attr]
    assert (tmp_path / LEASE).stat().st_mtime == 1e9


def test_a_driver_that_lost_its_lease_while_suspended_stops_when_it_wakes(tmp_path: Path) -> None:
    with StudyLock(tmp_path) as held:
        held.check()
        lease_of(tmp_path, host="login-2", boot="another", token="other")
        time.sleep(0.15)
        with pytest.raises(StudyLockedError, match="took this study over"):
            held.check()
    assert read_driver(tmp_path).host == "login-2", "a lease of another driver was removed"  # type: ignore[union-attr]


def test_a_driver_that_is_asked_stops_and_a_later_one_does_not(tmp_path: Path) -> None:
    with StudyLock(tmp_path) as held:
        held.check()
        assert ask_to_stop(tmp_path) == held.driver
        with pytest.raises(StudyStoppedError):
            held.check()
    with StudyLock(tmp_path) as later:
        later.check()


def test_nobody_can_be_asked_to_stop_a_study_that_nobody_drives(tmp_path: Path) -> None:
    assert ask_to_stop(tmp_path) is None
    lease_of(tmp_path, pid=2**22 + 1)
    assert ask_to_stop(tmp_path) is None
