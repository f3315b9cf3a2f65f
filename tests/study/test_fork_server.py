"""Workers that are forked from a server."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest

from trimtab.study import fork_server
from trimtab.study.executors.contract import Job, JobReport
from trimtab.study.executors.processes import ProcessExecutor
from trimtab.testing.executor_contract import FORK_SERVER, live_processes
from trimtab.testing.executor_tasks import BEATS, job_spec, perform


def carried_out(executor: ProcessExecutor, name: str, folder: Path) -> list[str]:
    """What a job wrote."""
    executor.submit(Job(name, job_spec(), folder))
    reports: list[JobReport] = []
    while not reports:
        reports = executor.poll(0.1)
    assert [(report.name, report.kind) for report in reports] == [(name, "done")]
    return (folder / name).read_text().split()


def servers() -> list[int]:
    """The fork servers among the live children of this process."""
    processes = live_processes().items()
    return [number for number, (parent, command) in processes if parent == os.getpid() and FORK_SERVER in command]


def test_a_worker_has_the_environment_of_the_moment_when_it_starts(
    user_code: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in ("first", "second"):
        monkeypatch.setenv(user_code.MARKS, value)
        with ProcessExecutor(1, task=user_code.tell_environment) as executor:
            assert carried_out(executor, value, tmp_path)[1] == value


def test_a_server_that_is_killed_takes_its_workers_along_and_is_started_again(tmp_path: Path) -> None:
    """Nobody could tell any more whether they live; a run must not have two writers."""
    with ProcessExecutor(1, task=perform) as executor:
        executor.submit(Job("beat-1", job_spec(), tmp_path))
        while not (tmp_path / "beat-1").exists():
            assert executor.poll(0.1) == []
        for server in servers():
            os.kill(server, signal.SIGKILL)
        reports: list[JobReport] = []
        while not reports:
            reports = executor.poll(0.1)
        assert [(report.name, report.kind) for report in reports] == [("beat-1", "killed")]
        before = (tmp_path / "beat-1" / BEATS).stat().st_size
        executor.submit(Job("write-1", job_spec(), tmp_path))
        reports = []
        while not reports:
            reports = executor.poll(0.1)
        assert [(report.name, report.kind) for report in reports] == [("write-1", "done")]
        assert (tmp_path / "beat-1" / BEATS).stat().st_size - before <= 1
        assert len(servers()) == 1


@pytest.mark.parametrize(("length", "method"), [(20, "forkserver"), (100, "spawn")])
def test_a_temporary_folder_without_room_for_a_socket_needs_no_server(
    length: int, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/" + "x" * (length - 1))
    assert fork_server.context().get_start_method() == method


def test_without_a_server_a_worker_has_an_interpreter_of_its_own(
    user_code: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fork_server.sys, "platform", "darwin")
    with ProcessExecutor(1, task=user_code.tell_environment) as executor:
        number = carried_out(executor, "alone", tmp_path)[0]
        assert "spawn_main" in Path(f"/proc/{number}/cmdline").read_text()
