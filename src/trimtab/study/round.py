"""One round of runs: submit them to the executor, receive its reports, and retry runs that failed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from trimtab.config import ConfigError
from trimtab.run.folder import Outcome, load_outcome
from trimtab.run.heartbeat import HEARTBEAT, load_beat
from trimtab.run.spec import RunSpec
from trimtab.study.executors.contract import FINAL, Executor, Job, JobReport
from trimtab.study.failures import Failures
from trimtab.study.trial import Trial

POLL_SECONDS = 0.5
LOOK_SECONDS = 1.0  # between two looks at the heartbeat files of all active runs
SILENT_SECONDS = 60.0  # without a report, before a message is shown; and the least that a worker has to start


class Display(Protocol):
    """Shows the progress of a study."""

    def round_started(self, name: str, total: int, to_train: int) -> None: ...

    def progress(self, trial: Trial, step: int, loss: float) -> None: ...

    def silent(self, trial: Trial, seconds: float, replaced: bool) -> None: ...

    def finished(self, trial: Trial, outcome: Outcome | None, message: str) -> None: ...


class Silence:
    """Shows nothing."""

    def round_started(self, name: str, total: int, to_train: int) -> None: ...

    def progress(self, trial: Trial, step: int, loss: float) -> None: ...

    def silent(self, trial: Trial, seconds: float, replaced: bool) -> None: ...

    def finished(self, trial: Trial, outcome: Outcome | None, message: str) -> None: ...


@dataclass(slots=True)
class _AtWork:
    """An active job.

    Attributes:
        heard: time of its last sign of progress, on the monotonic clock of this process, in seconds.
        beat: modification time of its heartbeat file, in seconds; at first that of an earlier attempt.
        begun: whether it made progress since it was submitted; a worker that starts imports torch first.
        queued: whether it waits in a queue outside this process.
        shown: whether the display was told that it makes no progress.
    """

    heard: float
    beat: float
    begun: bool = False
    queued: bool = False
    shown: bool = False

    def move(self, now: float) -> None:
        """Note a sign of progress."""
        self.heard = now
        self.begun = True
        self.queued = False
        self.shown = False


class Round:
    """The runs of one round that have no outcome yet.

    Args:
        trials: the trial of each run, by run id.
        jobs: the specification of each run, by run id.
        runs: the folder that holds run folders.
        keep_going: called between two polls; raises to end the round.

    Attributes:
        outcomes: the outcomes of the runs that were carried out, by run id.
    """

    def __init__(
        self,
        trials: Mapping[str, Trial],
        jobs: Mapping[str, RunSpec],
        runs: Path,
        executor: Executor,
        failures: Failures,
        display: Display,
        keep_going: Callable[[], None] = lambda: None,
    ) -> None:
        self.keep_going = keep_going
        self.looked = 0.0
        self.trials = trials
        self.jobs = jobs
        self.runs = runs
        self.executor = executor
        self.failures = failures
        self.display = display
        self.waiting = list(reversed(list(trials)))
        self.at_work: dict[str, _AtWork] = {}
        self.outcomes: dict[str, Outcome] = {}

    def carry_out(self) -> None:
        """Carry out the runs until every run has an outcome or is given up.

        Raises:
            OSError: if a worker reports that the storage refuses to be written.
            ConfigError: if a worker cannot load the code of the study.
        """
        while self.waiting or self.at_work:
            self.keep_going()
            self._submit()
            reports = self.executor.poll(POLL_SECONDS)
            for report in reports:
                if report.kind in FINAL:
                    self.at_work.pop(report.name, None)
            self._submit()  # before the outcomes are read and checked, so that no worker waits for that
            for report in reports:
                self._hear(report)
            self._look_after_the_silent()

    def _submit(self) -> None:
        while self.waiting and len(self.at_work) < self.executor.capacity:
            name = self.waiting.pop()
            self.at_work[name] = _AtWork(time.monotonic(), _last_beat(self.runs / name / HEARTBEAT))
            self.executor.submit(Job(name, self.jobs[name], self.runs))

    def _hear(self, report: JobReport) -> None:
        trial = self.trials[report.name]
        if report.kind == "progress":
            if report.name in self.at_work:
                self.at_work[report.name].move(time.monotonic())
            self.display.progress(trial, report.step, report.loss)
            return
        if report.kind in ("queued", "started"):
            job = self.at_work.get(report.name)
            if job is not None:
                job.queued = report.kind == "queued"
                job.heard = time.monotonic()
            return
        # A worker may be killed between the outcome of a run and its report, so the folder decides.
        outcome = load_outcome(self.runs / report.name) if report.kind in ("done", "killed", "returned") else None
        if outcome is not None:
            self.outcomes[report.name] = outcome
            self.failures.forget(report.name)
            self.display.finished(trial, outcome, "")
        elif report.kind == "storage":
            raise OSError(report.message)
        elif report.kind == "returned":
            self.waiting.append(report.name)
        elif report.kind == "unusable":
            raise ConfigError(f"a worker cannot run this study: {report.message}")
        else:
            report = report if report.message else replace(report, message="the run ended without an outcome")
            if self.failures.add(report.name, report.message, killed=report.kind == "killed"):
                self.display.finished(trial, None, report.message)
            else:
                self.waiting.append(report.name)

    def _look_after_the_silent(self) -> None:
        """Show a job whose heartbeat file does not change for a minute; replace its worker after ``silent_seconds``.

        A job that has not begun has at least a minute: a shorter limit would kill every worker while it starts.
        """
        now = time.monotonic()
        if now - self.looked < LOOK_SECONDS:
            return
        self.looked = now
        for name, job in self.at_work.items():
            beat = _last_beat(self.runs / name / HEARTBEAT)
            if beat != job.beat:
                job.beat = beat
                job.move(now)
                self._show_beat(name)
            if job.queued:
                job.heard = now
            silent = now - job.heard
            limit = self.jobs[name].protocol.training.silent_seconds
            if not job.begun:
                limit = max(limit, SILENT_SECONDS)
            if silent > limit:
                job.heard = now
                self.display.silent(self.trials[name], silent, replaced=True)
                self.executor.drop(name)
            elif silent > min(SILENT_SECONDS, limit) and not job.shown:
                job.shown = True
                self.display.silent(self.trials[name], silent, replaced=False)

    def _show_beat(self, name: str) -> None:
        beat = load_beat(self.runs / name)
        if beat is not None and beat.step:
            self.display.progress(self.trials[name], beat.step, beat.loss)


def _last_beat(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0
