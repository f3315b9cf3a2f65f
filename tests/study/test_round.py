"""One round of runs: what is submitted when, and what is retried."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from limit_studies import outcome, study

from trimtab.run.folder import Outcome, RunFolder
from trimtab.study.executors.contract import Job, JobReport
from trimtab.study.failures import Failures
from trimtab.study.round import Round, Silence
from trimtab.study.trial import Tick, Trial

NAMES = ("a" * 20, "b" * 20, "c" * 20)


class Scripted:
    """Carries out one job at a time; the first ``killed`` attempts leave no outcome."""

    capacity = 1

    def __init__(self, killed: int = 0) -> None:
        self.killed = killed
        self.submitted: list[str] = []
        self.reports: list[JobReport] = []

    def submit(self, job: Job) -> None:
        self.submitted.append(job.name)
        if self.killed:
            self.killed -= 1
            self.reports.append(JobReport(job.name, "killed", message="its worker ended"))
            return
        folder = RunFolder(job.runs / job.name)
        folder.begin("", {})
        folder.finish(outcome(run_id=job.name))
        self.reports.append(JobReport(job.name, "done"))

    def poll(self, timeout: float) -> Sequence[JobReport]:
        reports, self.reports = self.reports, []
        return reports

    def drop(self, name: str) -> None:
        raise AssertionError(f"{name} is not silent")

    def cancel(self) -> None: ...


class Noting(Silence):
    """Notes how many jobs were submitted when a run was said to be finished."""

    def __init__(self, executor: Scripted) -> None:
        self.executor = executor
        self.seen: list[tuple[str, int]] = []

    def finished(self, trial: Trial, outcome: Outcome | None, message: str) -> None:
        self.seen.append((outcome.run_id if outcome else "", len(self.executor.submitted)))


def carry_out(executor: Scripted, folder: Path) -> tuple[Round, Noting]:
    spec = study(arms=("baseline",))
    trials = {name: Trial(0, "baseline", Tick(16 * i), 0) for i, name in enumerate(NAMES)}
    (folder / "runs").mkdir()
    display = Noting(executor)
    jobs = {name: spec.run_of(trial) for name, trial in trials.items()}
    round_ = Round(trials, jobs, folder / "runs", executor, Failures(folder), display)
    round_.carry_out()
    return round_, display


def test_a_worker_gets_its_next_run_before_the_finished_one_is_read(tmp_path: Path) -> None:
    executor = Scripted()
    _, display = carry_out(executor, tmp_path)
    assert executor.submitted == list(NAMES)
    assert display.seen == [(NAMES[0], 2), (NAMES[1], 3), (NAMES[2], 3)]


def test_a_round_holds_the_outcomes_that_it_checked(tmp_path: Path) -> None:
    round_, _ = carry_out(Scripted(), tmp_path)
    assert round_.outcomes == {name: outcome(run_id=name) for name in NAMES}


def test_a_killed_run_is_tried_again_after_those_that_were_submitted_meanwhile(tmp_path: Path) -> None:
    executor = Scripted(killed=1)
    round_, _ = carry_out(executor, tmp_path)
    assert executor.submitted == [NAMES[0], NAMES[1], NAMES[0], NAMES[2]]
    assert set(round_.outcomes) == set(NAMES)
