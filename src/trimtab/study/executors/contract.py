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

# What the machine refuses to every run alike. A missing file of the user's is an OSError too, and not of these.
STORAGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE)

Progress = Callable[[int, float], None]
Task = Callable[["Job", Progress], None]


@dataclass(frozen=True, slots=True)
class Job:
    """One run to carry out: its specification, its name, and the folder that will hold its folder."""

    name: str
    spec: RunSpec
    runs: Path


def train_job(job: Job, progress: Progress) -> None:
    """What a worker does with a job: train it into its folder."""
    execute(job.spec, job.runs, progress=progress, expected=job.name)


@dataclass(frozen=True, slots=True)
class JobReport:
    """News of one job.

    Attributes:
        kind: ``progress``; ``done``, its folder holds the outcome; ``failed``, it raised; ``killed``, its worker
            died; ``storage``, the disk refused; ``unusable``, a worker cannot find the code it is to run.
        step, loss: for progress.
        message: for failures, one line.
    """

    name: str
    kind: Literal["progress", "done", "failed", "killed", "storage", "unusable"]
    step: int = 0
    loss: float = 0.0
    message: str = ""


class Executor(Protocol):
    """Carries out jobs in any order. Used as a context manager; leaving it stops everything still running."""

    @property
    def capacity(self) -> int:
        """How many jobs can run at once."""
        ...

    def submit(self, job: Job) -> None:
        """Start a job; at most ``capacity`` may be unfinished."""
        ...

    def poll(self, timeout: float) -> list[JobReport]:
        """News since the last call; waits at most ``timeout`` seconds for some."""
        ...

    def drop(self, name: str) -> None:
        """Kill one unfinished job that makes no progress, if that is possible; it is then reported as killed."""
        ...

    def cancel(self) -> None:
        """Stop all unfinished jobs now."""
        ...

    def __enter__(self) -> Executor: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def failure(job: Job, error: Exception) -> JobReport:
    """News of a job that raised: the disk's refusal, or anything else, which is that job's own affair."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno in STORAGE_ERRORS:
        return JobReport(job.name, "storage", message=text)
    return JobReport(job.name, "failed", message=f"{type(error).__name__}: {text}")
