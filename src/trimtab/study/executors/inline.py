"""Carry out one run at a time in this process, for debugging, notebooks, and models that cannot be sent to a worker."""

from __future__ import annotations

from types import TracebackType

from trimtab.study.executors.contract import Job, JobReport, Task, failure, train_job


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
