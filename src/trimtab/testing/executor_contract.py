"""The contract of executors: every job ends once and is told truly, and nothing outlives the executor."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from trimtab.study.executors.contract import FINAL, Executor, Job, JobReport, Task
from trimtab.testing.executor_tasks import BEATS, PROGRESS, REFUSED, WRITTEN, job_spec, perform

POLL_SECONDS = 0.2
FORK_SERVER = "multiprocessing.forkserver"  # in the command line of the server
SLOW = "slow-1"
MIXED = ("write-1", "raise-1", *REFUSED, "missing-1", "write-2")


@dataclass(frozen=True, slots=True)
class Ended:
    """What became of jobs.

    Attributes:
        final: the last report of each job, by name.
        progress: all reports of progress, in order.
        written: what each job left in its folder, by name.
    """

    final: Mapping[str, JobReport]
    progress: Sequence[JobReport]
    written: Mapping[str, str]


class ExecutorContract(ABC):
    """Subclass, fill in ``make_executor``, and let pytest collect the tests.

    Attributes:
        runs_in_poll: whether jobs run inside ``poll``, so that none can be stopped while it runs.
        reports_progress: whether it passes on what a task says of its progress.
        can_drop: whether ``drop`` can kill a job that is at work.
        patience: seconds until a job that is not reported counts as lost; starting a process takes some.
        still_seconds: how long a job that was stopped is looked at.
    """

    runs_in_poll: ClassVar[bool] = False
    reports_progress: ClassVar[bool] = True
    can_drop: ClassVar[bool] = True
    patience: ClassVar[float] = 60.0
    still_seconds: ClassVar[float] = 1.0

    @abstractmethod
    def make_executor(self, task: Task) -> Executor:
        """A fresh executor that does this with every job; not yet entered."""

    def test_every_job_ends_in_exactly_one_final_report(self, tmp_path: Path) -> None:
        """Also those that raise, and those that come after them."""
        ended = self.mixed(tmp_path)
        assert set(ended.final) == set(self.names)

    def test_done_jobs_left_what_their_task_wrote(self, tmp_path: Path) -> None:
        """Under the folder and the name that the job has."""
        ended = self.mixed(tmp_path)
        for name in set(self.names) - set(REFUSED) - {"raise-1", "missing-1"}:
            assert ended.final[name].kind == "done", f"{name} is reported as {ended.final[name]}"
            assert ended.written.get(name) == name, f"{name} is done and wrote {ended.written.get(name)!r}"

    def test_a_task_that_raises_has_failed_with_one_line_that_names_the_error(self, tmp_path: Path) -> None:
        """The user's own errors; a missing file is one of them."""
        ended = self.mixed(tmp_path)
        for name, words in (("raise-1", ("LookupError", "vocabulary")), ("missing-1", ("table.npy",))):
            report = ended.final[name]
            assert report.kind == "failed", f"{name} raised, and is reported as {report}"
            missing = [word for word in words if word not in report.message]
            assert not missing, f"the message of {name} lacks {missing}: {report.message!r}"
            assert len(report.message.splitlines()) == 1, f"the message of {name} has several lines: {report.message!r}"

    def test_what_the_disk_refuses_is_storage(self, tmp_path: Path) -> None:
        """A full disk, a read-only one, and too many open files are the machine's fault, and stop a study."""
        ended = self.mixed(tmp_path)
        for name, number in REFUSED.items():
            report = ended.final[name]
            assert report.kind == "storage", f"{name} is reported as {report}"
            assert os.strerror(number) in report.message, f"the message of {name} is {report.message!r}"

    def test_progress_names_its_job_and_says_what_the_task_said(self, tmp_path: Path) -> None:
        """Not every step is passed on."""
        if not self.reports_progress:
            return
        progress = self.mixed(tmp_path).progress
        assert progress, "no progress is reported"
        for report in progress:
            assert report.name == SLOW, f"progress of {report.name}, which made none"
            assert (report.step, report.loss) in PROGRESS, f"{report} was never said"

    def test_as_many_jobs_run_at_once_as_it_has_capacity(self, tmp_path: Path) -> None:
        """Each waits for all the others to begin."""
        with self.make_executor(perform) as executor:
            number = executor.capacity
            assert number >= 1, f"a capacity of {number}"
            names = [f"meet-{index}-{number}-{self.patience / 2}" for index in range(number)]
            ended = self.finish(executor, tmp_path, names)
        assert all(report.kind == "done" for report in ended.final.values()), list(ended.final.values())

    def test_leaving_the_context_stops_everything(self, tmp_path: Path) -> None:
        """No job goes on, and no child process is left."""

        def leave(executor: Executor) -> None:
            self.begin(executor, tmp_path, "beat-1")

        self.assert_stopped(leave, tmp_path / "beat-1")

    def test_an_error_inside_the_with_block_stops_everything_and_is_passed_on(self, tmp_path: Path) -> None:
        """As Ctrl-C does."""

        def fail(executor: Executor) -> None:
            self.begin(executor, tmp_path, "beat-1")
            raise KeyboardInterrupt

        try:
            self.assert_stopped(fail, tmp_path / "beat-1")
        except KeyboardInterrupt:
            return
        raise AssertionError("the executor swallowed an error of the with-block")

    def test_cancel_forgets_every_unfinished_job(self, tmp_path: Path) -> None:
        """They are stopped, and nothing more is heard of them."""
        with self.make_executor(perform) as executor:
            name = "write-1" if self.runs_in_poll else "beat-1"
            self.begin(executor, tmp_path, name)
            executor.cancel()
            reports = executor.poll(POLL_SECONDS)
            assert not reports, f"after cancel: {reports}"
            self.assert_still(tmp_path / name)

    def test_a_stuck_job_that_is_dropped_is_killed_and_others_go_on(self, tmp_path: Path) -> None:
        """A name that nothing unfinished has is passed over."""
        with self.make_executor(perform) as executor:
            executor.drop("write-0")
            if self.can_drop:
                self.begin(executor, tmp_path, "beat-1")
                executor.drop("beat-1")
                ended = self.hear(executor, tmp_path, ["beat-1"])
                assert ended.final["beat-1"].kind == "killed", f"reported as {ended.final['beat-1']}"
                self.assert_still(tmp_path / "beat-1")
            ended = self.finish(executor, tmp_path, ["write-1"])
            assert ended.final["write-1"].kind == "done", f"reported as {ended.final['write-1']}"

    @property
    def names(self) -> Sequence[str]:
        """Jobs of every sort; a slow one where there is progress to report."""
        return (*MIXED, SLOW) if self.reports_progress else MIXED

    def mixed(self, folder: Path) -> Ended:
        """What becomes of jobs of every sort; carried out once for all tests of a class."""
        known = type(self).__dict__.get("_mixed")
        if known is None:
            with self.make_executor(perform) as executor:
                known = self.finish(executor, folder, self.names)
            type(self)._mixed = known  # pyright: ignore[reportAttributeAccessIssue]
        return known

    def begin(self, executor: Executor, folder: Path, name: str) -> None:
        """Submit a job, and wait until it is at work where it can be."""
        executor.submit(Job(name, job_spec(), folder))
        deadline = time.monotonic() + self.patience
        while not self.runs_in_poll and not (folder / name).exists():
            assert time.monotonic() < deadline, f"{name} did not begin within {self.patience} s"
            reports = [report for report in executor.poll(POLL_SECONDS) if report.kind in FINAL]
            assert not reports, f"{name}, which is at work, is reported as {reports}"

    def finish(self, executor: Executor, folder: Path, names: Sequence[str]) -> Ended:
        """Carry jobs out, as many at once as the executor takes."""
        return self.hear(executor, folder, names, submit=names)

    def hear(self, executor: Executor, folder: Path, names: Sequence[str], submit: Sequence[str] = ()) -> Ended:
        """Wait for the final reports of jobs; ``submit`` names those that are still to be submitted."""
        waiting = list(reversed(submit))
        unfinished = set(names) - set(submit)
        final: dict[str, JobReport] = {}
        progress: list[JobReport] = []
        deadline = time.monotonic() + self.patience
        while len(final) < len(names):
            while waiting and len(unfinished) < executor.capacity:
                unfinished.add(waiting[-1])
                executor.submit(Job(waiting.pop(), job_spec(), folder))
            lost = sorted(set(names) - set(final))
            assert time.monotonic() < deadline, f"no final report of {lost} within {self.patience} s"
            reports = executor.poll(POLL_SECONDS)
            _sort(reports, unfinished, final, progress)
            if reports:
                deadline = time.monotonic() + self.patience
        _sort(executor.poll(POLL_SECONDS), unfinished, final, progress)
        files = {name: folder / name / WRITTEN for name in names}
        written = {name: file.read_text(encoding="utf-8") for name, file in files.items() if file.exists()}
        return Ended(final, progress, written)

    def assert_stopped(self, inside: Callable[[Executor], None], job: Path) -> None:
        """Fail if a job goes on, or a child process lives, after the with-block."""
        before = children()
        try:
            with self.make_executor(perform) as executor:
                inside(executor)
        finally:
            self.assert_still(job)
            left = {number: command for number, command in children().items() if number not in before}
            assert not left, f"child processes are left: {left}"

    def assert_still(self, job: Path) -> None:
        """Fail if a job still writes."""
        before = _beats(job)
        time.sleep(self.still_seconds)
        assert _beats(job) == before, f"{job.name} still runs"


def _sort(
    reports: Sequence[JobReport], unfinished: set[str], final: dict[str, JobReport], progress: list[JobReport]
) -> None:
    for report in reports:
        assert report.name not in final, f"a second final report, or progress after the end: {report}"
        assert report.name in unfinished, f"a report of a job that was not submitted: {report}"
        if report.kind == "progress":
            progress.append(report)
        elif report.kind in FINAL:
            final[report.name] = report
            unfinished.discard(report.name)


def children() -> dict[int, str]:
    """Live child processes of this one with their command lines, and those that its fork server started.

    The fork server itself and the other bookkeeper of multiprocessing, which end with this process, do not count. Empty
    on a system without ``/proc``.
    """
    all_of = live_processes()
    own = {number: command for number, (parent, command) in all_of.items() if parent == os.getpid()}
    servers = {number for number, command in own.items() if FORK_SERVER in command}
    forked = {number: command for number, (parent, command) in all_of.items() if parent in servers}
    return forked | {n: command for n, command in own.items() if n not in servers and "resource_tracker" not in command}


def live_processes() -> dict[int, tuple[int, str]]:
    """The parent and the command line of every live process; empty on a system without ``/proc``."""
    found: dict[int, tuple[int, str]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            command = (entry / "cmdline").read_text().replace("\0", " ")
        except (OSError, ValueError):
            continue
        if state != "Z":
            found[int(entry.name)] = (int(parent), command)
    return found


def _beats(job: Path) -> int:
    """How much a job wrote until now."""
    file = job / BEATS
    return file.stat().st_size if file.exists() else len(list(job.glob("*")))
