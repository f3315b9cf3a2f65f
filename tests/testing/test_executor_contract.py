"""The contract of executors holds for ours and catches each way to be wrong."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from typing_extensions import override

from trimtab.study.executors.contract import Executor, Job, JobReport, Task
from trimtab.study.executors.inline import InlineExecutor
from trimtab.study.executors.processes import ProcessExecutor
from trimtab.testing import ExecutorContract


class TestInlineExecutor(ExecutorContract):
    runs_in_poll = True
    reports_progress = False
    can_drop = False

    @override
    def make_executor(self, task: Task) -> Executor:
        return InlineExecutor(task)


class TestProcessExecutor(ExecutorContract):
    @override
    def make_executor(self, task: Task) -> Executor:
        return ProcessExecutor(2, task=task)


# --- executors that are wrong -----------------------------------------------------------------------------------------


class LosesAJob(InlineExecutor):
    @override
    def submit(self, job: Job) -> None:
        if job.name != "write-2":
            super().submit(job)


class ReportsTwice(InlineExecutor):
    @override
    def poll(self, timeout: float) -> list[JobReport]:
        return 2 * super().poll(timeout)


class ReportsLater(InlineExecutor):
    """The same end once more, when nobody waits for it."""

    last: list[JobReport] | None = None

    @override
    def poll(self, timeout: float) -> list[JobReport]:
        reports = super().poll(timeout)
        self.last = reports or self.last
        return self.last or []


class SwallowsErrors(InlineExecutor):
    @override
    def poll(self, timeout: float) -> list[JobReport]:
        return [JobReport(report.name, "done") for report in super().poll(timeout)]


class DoesNothing(InlineExecutor):
    @override
    def poll(self, timeout: float) -> list[JobReport]:
        return [JobReport(self.waiting.pop().name, "done")] if self.waiting else []


class NamesNoError(InlineExecutor):
    @override
    def poll(self, timeout: float) -> list[JobReport]:
        return [replace(report, message="failed") if report.message else report for report in super().poll(timeout)]


class CountsTheDiskAsTheJobs(InlineExecutor):
    @override
    def poll(self, timeout: float) -> list[JobReport]:
        return [
            replace(report, kind="failed") if report.kind == "storage" else report for report in super().poll(timeout)
        ]


class CountsTheJobsAsTheDisks(InlineExecutor):
    @override
    def poll(self, timeout: float) -> list[JobReport]:
        return [
            replace(report, kind="storage") if report.kind == "failed" else report for report in super().poll(timeout)
        ]


class TakesMoreThanItRuns(InlineExecutor):
    capacity = 2


class MixesUpNames(InlineExecutor):
    @override
    def poll(self, timeout: float) -> list[JobReport]:
        return [replace(report, name="write-3") for report in super().poll(timeout)]


class LeavesAChild(InlineExecutor):
    started: ClassVar[list[subprocess.Popen[bytes]]] = []

    @override
    def __enter__(self) -> InlineExecutor:
        self.started.append(subprocess.Popen(["sleep", "60"]))
        return self


class CancelDoesNothing(InlineExecutor):
    @override
    def cancel(self) -> None:
        pass


class GoesOnAfterwards(InlineExecutor):
    """Does the rest on leaving."""

    @override
    def __exit__(self, *error: Any) -> None:
        while self.waiting:
            self.waiting[-1] = replace(self.waiting[-1], name="write-after")
            folder = self.waiting.pop().runs / "beat-1"
            folder.mkdir()
            self.started = subprocess.Popen(["sh", "-c", f"sleep 0.1; touch {folder}/late"])


class SwallowsInterrupts(InlineExecutor):
    @override
    def __exit__(self, *error: Any) -> Any:
        super().__exit__(*error)
        return True


class StumblesOverDrop(InlineExecutor):
    @override
    def drop(self, name: str) -> None:
        assert any(job.name == name for job in self.waiting)


class SaysWhatNobodySaid(InlineExecutor):
    @override
    def poll(self, timeout: float) -> list[JobReport]:
        reports = super().poll(timeout)
        return [JobReport(report.name, "progress", 1, 0.0) for report in reports] + reports


class SilentDrop(ProcessExecutor):
    @override
    def drop(self, name: str) -> None:
        pass


@pytest.fixture(autouse=True)
def no_child_of_ours() -> Iterator[None]:
    yield
    for process in LeavesAChild.started:
        process.kill()
        process.wait()
    LeavesAChild.started.clear()


def failures(executor: Any, tmp_path: Path, **facts: Any) -> set[str]:
    attributes = {
        "runs_in_poll": True,
        "reports_progress": False,
        "can_drop": False,
        "patience": 0.5,
        "still_seconds": 0.2,
        **facts,
    }

    class Contract(ExecutorContract):
        @override
        def make_executor(self, task: Task) -> Executor:
            return executor(task)

    for name, value in attributes.items():
        setattr(Contract, name, value)
    contract = Contract()
    failed: set[str] = set()
    for name in dir(contract):
        if name.startswith("test_"):
            folder = tmp_path / name
            folder.mkdir()
            try:
                getattr(contract, name)(folder)
            except AssertionError:
                failed.add(name)
    return failed


ENDS = "test_every_job_ends_in_exactly_one_final_report"
DONE = "test_done_jobs_left_what_their_task_wrote"
RAISES = "test_a_task_that_raises_has_failed_with_one_line_that_names_the_error"
STORAGE = "test_what_the_disk_refuses_is_storage"
PROGRESS = "test_progress_names_its_job_and_says_what_the_task_said"
AT_ONCE = "test_as_many_jobs_run_at_once_as_it_has_capacity"
LEAVING = "test_leaving_the_context_stops_everything"
ERROR = "test_an_error_inside_the_with_block_stops_everything_and_is_passed_on"
CANCEL = "test_cancel_forgets_every_unfinished_job"
DROP = "test_a_stuck_job_that_is_dropped_is_killed_and_others_go_on"
MIXED = {ENDS, DONE, RAISES, STORAGE}


@pytest.mark.parametrize(
    ("executor", "caught"),
    [
        (LosesAJob, MIXED),
        (ReportsTwice, {*MIXED, AT_ONCE, DROP}),
        (ReportsLater, {*MIXED, AT_ONCE, DROP}),
        (SwallowsErrors, {RAISES, STORAGE}),
        (DoesNothing, {DONE, RAISES, STORAGE}),
        (NamesNoError, {RAISES, STORAGE}),
        (CountsTheDiskAsTheJobs, {STORAGE}),
        (CountsTheJobsAsTheDisks, {RAISES}),
        (TakesMoreThanItRuns, {AT_ONCE}),
        (MixesUpNames, {*MIXED, AT_ONCE, DROP}),
        (LeavesAChild, {LEAVING, ERROR}),
        (CancelDoesNothing, {CANCEL}),
        (SwallowsInterrupts, {ERROR}),
        (StumblesOverDrop, {DROP}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_contract_catches(executor: type[InlineExecutor], caught: set[str], tmp_path: Path) -> None:
    assert failures(executor, tmp_path) == caught


def test_the_contract_catches_work_that_goes_on_afterwards(tmp_path: Path) -> None:
    # It goes on in a thread, which a busy machine may let rest while one of the two tests looks.
    assert failures(GoesOnAfterwards, tmp_path) & {LEAVING, ERROR}


def test_the_contract_lets_a_sound_executor_pass(tmp_path: Path) -> None:
    assert failures(InlineExecutor, tmp_path) == set()


def test_the_contract_catches_progress_that_is_missing_or_made_up(tmp_path: Path) -> None:
    for number, executor in enumerate((InlineExecutor, SaysWhatNobodySaid)):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert PROGRESS in failures(executor, folder, reports_progress=True)


def test_the_contract_catches_a_drop_that_does_nothing(tmp_path: Path) -> None:
    class Contract(ExecutorContract):
        patience = 20.0

        @override
        def make_executor(self, task: Task) -> Executor:
            return SilentDrop(1, task=task)

        @override
        def hear(self, *arguments: Any, **more: Any) -> Any:
            type(self).patience = 1.0  # the job has begun
            return super().hear(*arguments, **more)

    started = time.monotonic()
    with pytest.raises(AssertionError, match="no final report of"):
        getattr(Contract(), DROP)(tmp_path)
    assert time.monotonic() - started < 40
