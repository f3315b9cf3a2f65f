"""Carry out one run at a time in this process, for debugging, notebooks, and models that cannot be sent to a worker."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import final

from typing_extensions import override

from trimtab.study.executors.contract import ExecutorConfig, Job, JobReport, Task, failure, train_job
from trimtab.study.specification import StudySpec


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Inline(ExecutorConfig):
    """One run at a time in this process."""

    @override
    def start(self, spec: StudySpec, folder: Path) -> InlineExecutor:
        return InlineExecutor()


class InlineExecutor:
    """Runs each job inside ``poll``."""

    capacity = 1

    def __init__(self, task: Task = train_job) -> None:
        self.task = task
        self.waiting: list[Job] = []

    def submit(self, job: Job) -> None:
        """Keep the job for the next poll."""
        self.waiting.append(job)

    def poll(self, timeout: float) -> list[JobReport]:
        """Carry out one waiting job; returns one report, on its end."""
        if not self.waiting:
            return []
        job = self.waiting.pop()
        try:
            self.task(job, lambda step, loss: None)
        except Exception as error:  # an error of user code ends the job, not the study
            return [failure(job, error)]
        return [JobReport(job.name, "done")]

    def drop(self, name: str) -> None:
        """Do nothing: a job always ends inside ``poll``."""

    def cancel(self) -> None:
        """Discard the waiting jobs."""
        self.waiting.clear()

    def __enter__(self) -> InlineExecutor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()
