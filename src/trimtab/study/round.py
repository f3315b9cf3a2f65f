"""One round of runs: hand them to the executor, hear what becomes of them, try again what the machine failed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from trimtab.config import ConfigError
from trimtab.run.folder import HEARTBEAT, Outcome, load_outcome
from trimtab.run.spec import RunSpec
from trimtab.study.executors.contract import Executor, Job, JobReport
from trimtab.study.failures import Failures
from trimtab.study.trial import Trial

POLL_SECONDS = 0.5
SILENT_SECONDS = 60.0  # without news before a message; and what the start of a worker may take at least


class Display(Protocol):
    """Shows what goes on."""

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
    """A job at work.

    Attributes:
        heard: when it was last known to move, by this process's clock.
        beat: time of its heartbeat file; at first that of an earlier attempt.
        begun: whether it moved since it was handed over; a worker that starts imports torch first.
        shown: whether its silence was shown.
    """

    heard: float
    beat: float
    begun: bool = False
    shown: bool = False

    def move(self, now: float) -> None:
        """It is known to move."""
        self.heard = now
        self.begun = True
        self.shown = False


class Round:
    """The runs of one round that are missing.

    Args:
        trials: by run id.
        jobs: the specification of each.
        runs: the folder of run folders.
    """

    def __init__(
        self,
        trials: Mapping[str, Trial],
        jobs: Mapping[str, RunSpec],
        runs: Path,
        executor: Executor,
        failures: Failures,
        display: Display,
    ) -> None:
        self.trials = trials
        self.jobs = jobs
        self.runs = runs
        self.executor = executor
        self.failures = failures
        self.display = display
        self.waiting = list(reversed(list(trials)))
        self.at_work: dict[str, _AtWork] = {}

    def carry_out(self) -> None:
        """Until every run has its outcome or is given up."""
        while self.waiting or self.at_work:
            while self.waiting and len(self.at_work) < self.executor.capacity:
                name = self.waiting.pop()
                self.at_work[name] = _AtWork(time.monotonic(), _last_beat(self.runs / name / HEARTBEAT))
                self.executor.submit(Job(name, self.jobs[name], self.runs))
            for report in self.executor.poll(POLL_SECONDS):
                self._hear(report)
            self._look_after_the_silent()

    def _hear(self, report: JobReport) -> None:
        trial = self.trials[report.name]
        if report.kind == "progress":
            if report.name in self.at_work:
                self.at_work[report.name].move(time.monotonic())
            self.display.progress(trial, report.step, report.loss)
            return
        self.at_work.pop(report.name, None)
        outcome = load_outcome(self.runs / report.name) if report.kind == "done" else None
        if outcome is not None:
            self.failures.forget(report.name)
            self.display.finished(trial, outcome, "")
        elif report.kind == "storage":
            raise OSError(report.message)
        elif report.kind == "unusable":
            raise ConfigError(
                f"a worker cannot run this study ({report.message}); define its functions at the top of a module, "
                'guard a script by if __name__ == "__main__", or use workers=0'
            )
        else:
            report = report if report.message else replace(report, message="it ended without an outcome")
            if self.failures.add(report.name, report.message, killed=report.kind == "killed"):
                self.display.finished(trial, None, report.message)
            else:
                self.waiting.append(report.name)

    def _look_after_the_silent(self) -> None:
        """A job whose heartbeat file stands still is named after a minute and replaced after the limit of its run.

        A job that has not begun has a minute at least: a limit shorter than the start of a worker would kill every one.
        """
        now = time.monotonic()
        for name, job in self.at_work.items():
            beat = _last_beat(self.runs / name / HEARTBEAT)
            if beat != job.beat:
                job.beat = beat
                job.move(now)
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


def _last_beat(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0
