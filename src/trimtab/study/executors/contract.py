"""The contract of an executor."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol

from trimtab.run.execute import execute
from trimtab.run.spec import RunSpec

# Errors of the machine, which affect every run. Other OSErrors, such as a missing file, affect only one run.
STORAGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE)

Progress = Callable[[int, float], None]
Task = Callable[["Job", Progress], None]


@dataclass(frozen=True, slots=True)
class Job:
    """One run to carry out: its run id, its specification, and the folder that holds run folders."""

    name: str
    spec: RunSpec
    runs: Path


def train_job(job: Job, progress: Progress) -> None:
    """The default task of a worker: train the run of a job in its folder."""
    execute(job.spec, job.runs, progress=progress, expected=job.name)


@dataclass(frozen=True, slots=True)
class JobReport:
    """A report on one job.

    Attributes:
        kind: ``progress``; ``done``: the run folder holds the outcome; ``failed``: the task raised an error;
            ``killed``: the worker died; ``storage``: the storage cannot be used; ``unusable``: a worker cannot load the
            code of the run.
        step, loss: current step and training loss, for ``progress``.
        message: the reason of a failure, in one line.
    """

    name: str
    kind: Literal["progress", "done", "failed", "killed", "storage", "unusable"]
    step: int = 0
    loss: float = 0.0
    message: str = ""


class Executor(Protocol):
    """Carries out jobs in any order. It is used as a context manager; the exit stops all unfinished jobs."""

    @property
    def capacity(self) -> int:
        """Maximum number of unfinished jobs."""
        ...

    def submit(self, job: Job) -> None:
        """Start a job. At most ``capacity`` jobs may be unfinished."""
        ...

    def poll(self, timeout: float) -> list[JobReport]:
        """The reports since the last call; waits at most ``timeout`` seconds for a report."""
        ...

    def drop(self, name: str) -> None:
        """Kill one unfinished job that makes no progress, if the executor can; the job is then reported as killed."""
        ...

    def cancel(self) -> None:
        """Stop all unfinished jobs now."""
        ...

    def __enter__(self) -> Executor: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def failure(job: Job, error: Exception) -> JobReport:
    """The report on a job that raised an error: ``storage`` if the error affects every run, otherwise ``failed``."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno in STORAGE_ERRORS:
        return JobReport(job.name, "storage", message=text)
    return JobReport(job.name, "failed", message=f"{type(error).__name__}: {text}")
