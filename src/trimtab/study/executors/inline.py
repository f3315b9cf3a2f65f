"""One run at a time, in this process: for debugging, notebooks, and models that cannot be sent to a worker."""

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
        """Carry out one waiting job; returns its end only."""
        if not self.waiting:
            return []
        job = self.waiting.pop()
        try:
            self.task(job, lambda step, loss: None)
        except Exception as error:  # whatever the user's model raises is news of that job, not the end of the study
            return [failure(job, error)]
        return [JobReport(job.name, "done")]

    def drop(self, name: str) -> None:
        """Nothing: a job is over before anybody could ask."""

    def cancel(self) -> None:
        """Forget what waits."""
        self.waiting.clear()

    def __enter__(self) -> InlineExecutor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()
