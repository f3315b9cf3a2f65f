"""The contract of an executor, and of the configuration that starts one."""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol

from trimtab.run.carry_out import carry_out
from trimtab.run.execute import OtherCodeError
from trimtab.run.spec import RunSpec
from trimtab.study.specification import StudySpec

# Errors of the machine, which affect every run. Other OSErrors, such as a missing file, affect only one run.
STORAGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE)

FINAL = ("done", "failed", "killed", "returned", "storage", "unusable")  # the kinds of a job's last report

# The remedy if a worker cannot load the code of a study.
LOADABLE = 'define its functions at the top of a module, guard a script by if __name__ == "__main__", or use workers=0'

Progress = Callable[[int, float], None]
Task = Callable[["Job", Progress], None]


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to write a run: the file names the token."""

    file: Path
    token: str

    def held(self) -> bool:
        """Whether the claim is still valid."""
        try:
            return self.file.read_text(encoding="utf-8") == self.token
        except FileNotFoundError:
            return False


@dataclass(frozen=True, slots=True)
class Job:
    """One run to carry out.

    Attributes:
        name: its run id.
        spec: its specification.
        runs: the folder that holds run folders.
        claim: the right of a worker to write it; None if the worker cannot outlive its driver.
    """

    name: str
    spec: RunSpec
    runs: Path
    claim: Claim | None = None

    def owned(self) -> bool:
        """Whether this worker may still write the run."""
        return self.claim is None or self.claim.held()


def train_job(job: Job, progress: Progress) -> None:
    """The default task of a worker: train the run of a job in its folder."""
    carry_out(job.spec, job.runs, progress=progress, expected=job.name, owned=job.owned)


@dataclass(frozen=True, slots=True)
class JobReport:
    """A report on one job.

    Attributes:
        kind: ``queued``: the job waits, or is suspended, in a queue outside this process, so that its silence means
            nothing; ``started``: it left that queue; ``progress``; or one of ``FINAL``. ``done``: the run folder holds
            the outcome; ``failed``: the task raised an error; ``killed``: the worker died; ``returned``: the job ended
            before the task began, through no fault of the run; ``storage``: the storage cannot be used; ``unusable``:
            a worker cannot load the code of the run, or has other code.
        step, loss: current step and training loss, for ``progress``.
        message: the reason of a failure, in one line.
    """

    name: str
    kind: Literal["queued", "started", "progress", "done", "failed", "killed", "returned", "storage", "unusable"]
    step: int = 0
    loss: float = 0.0
    message: str = ""


class Executor(Protocol):
    """Carries out jobs in any order. It is used as a context manager; the exit stops all unfinished jobs."""

    @property
    def capacity(self) -> int:
        """The number of unfinished jobs that the executor wants: as many as it has workers, or, if a queue or an
        autoscaler decides what runs at a time, as many as should wait there.
        """
        ...

    def submit(self, job: Job) -> None:
        """Accept a job. At most ``capacity`` jobs may be unfinished."""
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


class ExecutorConfig(ABC):
    """Where and how the runs of a study are carried out; not part of any run's identity.

    A subclass is a frozen dataclass; its fields are the options of the executor.
    """

    @classmethod
    def slug(cls) -> str:
        """The name of the executor."""
        return cls.__name__.lower()

    @property
    def trains_here(self) -> bool:
        """Whether the runs are trained on the machine of the driver, which then must have their device."""
        return True

    @abstractmethod
    def start(self, spec: StudySpec, folder: Path) -> Executor:
        """An executor for a study in a folder; not yet entered.

        Raises:
            ConfigError: if it cannot be used here, or for this study. Nothing was started.
        """


def failure(job: Job, error: Exception) -> JobReport:
    """The report on a job that raised an error: ``storage`` if the error affects every run, otherwise ``failed``."""
    text = " ".join(str(error).split())
    if isinstance(error, OtherCodeError):
        return JobReport(job.name, "unusable", message=text)
    if isinstance(error, OSError) and error.errno in STORAGE_ERRORS:
        return JobReport(job.name, "storage", message=text)
    return JobReport(job.name, "failed", message=f"{type(error).__name__}: {text}")
