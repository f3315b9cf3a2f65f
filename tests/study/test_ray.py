"""Runs as tasks of Ray."""

from __future__ import annotations

import hashlib
import os
import signal
from pathlib import Path
from typing import Any, ClassVar

import pytest

from trimtab.config import ConfigError
from trimtab.run.execute import execute
from trimtab.run.files import IntegrityError
from trimtab.run.folder import load_outcome
from trimtab.run.parcel import packed, receive
from trimtab.study.executors.contract import FINAL, Executor, Job, JobReport, Progress, Task
from trimtab.study.executors.ray import RayExecutor
from trimtab.study.trial import Tick, Trial
from trimtab.testing import ExecutorContract
from trimtab.testing.executor_tasks import job_spec

pytestmark = pytest.mark.usefixtures("ray_here")


class TestRay(ExecutorContract):
    folder: ClassVar[Path]

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        type(self).folder = tmp_path_factory.mktemp("study")

    def make_executor(self, task: Task) -> Executor:
        return RayExecutor(type(self).folder, in_flight=2, task=task)


# --- without a shared disk --------------------------------------------------------------------------------------------


def final(executor: RayExecutor, job: Job) -> JobReport:
    """The last report of one job."""
    executor.submit(job)
    for _ in range(600):
        ends = [report for report in executor.poll(0.2) if report.kind in FINAL]
        if ends:
            return ends[0]
    raise AssertionError("no final report")


def test_without_a_shared_disk_the_files_of_a_run_come_back_with_the_same_bits(tiny: Any, tmp_path: Path) -> None:
    spec = tiny().spec
    run = spec.run_of(Trial(0, "baseline", Tick(-64), 0))
    inline = execute(run, tmp_path / "inline")
    with RayExecutor(tmp_path / "study") as executor:
        executor._mark.unlink()  # what a worker looks for to know that it sees the folder
        report = final(executor, Job(inline.run_id, run, tmp_path / "study" / "runs"))
    assert report.kind == "done", report
    here, there = (tmp_path / place / inline.run_id for place in ("study/runs", "inline"))
    assert load_outcome(here) is not None
    assert {file.name for file in here.iterdir()} == {file.name for file in there.iterdir()}
    assert (here / "steps.jsonl").read_bytes() == (there / "steps.jsonl").read_bytes()
    assert [file.name for file in (tmp_path / "study" / "runs").iterdir()] == [inline.run_id]


def test_a_file_that_changed_on_its_way_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "outcome.json").write_text("{}")
    files = packed(run)
    damaged = {name: (content + b" ", digest) for name, (content, digest) in files.items()}
    with pytest.raises(IntegrityError, match="changed on its way"):
        receive(damaged, tmp_path / "runs" / "x")
    assert not (tmp_path / "runs").exists()
    receive(files, tmp_path / "runs" / "x")
    assert (tmp_path / "runs" / "x" / "outcome.json").read_text() == "{}"


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/../../evil"])
def test_a_file_that_would_leave_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(IntegrityError, match="evil"):
        receive({name: (b"", hashlib.sha256(b"").hexdigest())}, tmp_path / "runs" / "x")
    assert not (tmp_path / "runs").exists()


# --- what ends a task -------------------------------------------------------------------------------------------------


def test_a_worker_that_dies_is_reported_once_and_ray_does_not_repeat_its_run(tmp_path: Path) -> None:
    def die(job: Job, progress: Progress) -> None:
        with (job.runs.parent / "died").open("a") as file:
            file.write("x")
        os.kill(os.getpid(), signal.SIGKILL)

    with RayExecutor(tmp_path, task=die) as executor:
        report = final(executor, Job("x", job_spec(), tmp_path / "runs"))
    assert report.kind == "killed"
    assert (tmp_path / "died").read_text() == "x"


def test_other_code_or_data_in_a_worker_is_no_failure_of_the_run(tiny: Any, tmp_path: Path) -> None:
    run = tiny().spec.run_of(Trial(0, "baseline", Tick(-64), 0))
    with RayExecutor(tmp_path / "study") as executor:
        report = final(executor, Job("0" * 20, run, tmp_path / "study" / "runs"))
    assert report.kind == "unusable"
    assert "the same trimtab and the same data" in report.message


def test_a_home_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/dev/null")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    with pytest.raises(ConfigError, match=r"/dev/null/\.ray cannot be written.*set HOME"), RayExecutor(tmp_path):
        pass
