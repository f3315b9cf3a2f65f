"""The contract of a batch system."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from trimtab.study.executors.batch.chunk import Chunk


@dataclass(frozen=True, slots=True)
class Listed:
    """What a batch system says of one job.

    Attributes:
        state: ``waiting`` also stands for a job that is held, suspended or being configured.
        reason: why it waits, or how it ended, in the words of the batch system.
        tag: the name of the job.
    """

    state: Literal["waiting", "running", "ended"]
    reason: str = ""
    tag: str = ""


class RefusedError(RuntimeError):
    """The batch system does not accept a submission.

    Attributes:
        passing: whether the same submission may be accepted later, as with a limit on the number of jobs.
    """

    def __init__(self, message: str, *, passing: bool) -> None:
        super().__init__(message)
        self.passing = passing


class Queue(Protocol):
    """A batch system."""

    @property
    def settle_seconds(self) -> float:
        """How long a job is not listed before it counts as ended, since lists and files of other hosts are late."""
        ...

    @property
    def query_seconds(self) -> float:
        """Time between two questions about the state of jobs."""
        ...

    @property
    def mail_seconds(self) -> float:
        """Time between two looks at the notes of workers."""
        ...

    @property
    def retry_seconds(self) -> float:
        """How long a refused submission waits; it waits twice as long after each further refusal."""
        ...

    @property
    def passing(self) -> tuple[type[Exception], ...]:
        """Errors that it raises inside a task to end a job."""
        ...

    def submit(self, tag: str, chunks: Sequence[Chunk]) -> Sequence[str]:
        """Submit a job for each chunk under one tag; returns their ids.

        Raises:
            RefusedError: if they are not accepted. None was submitted.
        """
        ...

    def listed(self) -> Mapping[str, Listed] | None:
        """The user's jobs by id; None if the batch system does not answer."""
        ...

    def cause(self, job_id: str) -> str:
        """Why a job that is no longer listed ended, in one line; "" if nothing is known."""
        ...

    def cancel(self, ids: Sequence[str]) -> None:
        """End jobs, as far as they still exist."""
        ...
