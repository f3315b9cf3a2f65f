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

# A missing file of the user's is an OSError too, but not the disk's.
STORAGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)

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
class Report:
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

    def poll(self, timeout: float) -> list[Report]:
        """News since the last call; waits at most ``timeout`` seconds for some."""
        ...

    def cancel(self) -> None:
        """Stop all unfinished jobs now."""
        ...

    def __enter__(self) -> Executor: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def failure(job: Job, error: Exception) -> Report:
    """News of a job that raised: the disk's refusal, or anything else, which is that job's own affair."""
    if isinstance(error, OSError) and error.errno in STORAGE_ERRORS:
        return Report(job.name, "storage", message=str(error))
    return Report(job.name, "failed", message=f"{type(error).__name__}: {error}")
