"""What the queues of submitit share."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any


class SubmititQueue:
    """What both queues share: the executor of submitit, made when it is first used since it creates folders."""

    def __init__(self, logs: Path, make: Callable[[Path], Any]) -> None:
        self.logs = logs
        self.make = make

    @cached_property
    def executor(self) -> Any:
        """The executor of submitit."""
        return self.make(self.logs)

    @property
    def passing(self) -> tuple[type[Exception], ...]:
        """The error by which submitit ends a task at its time limit."""
        from submitit.core.utils import UncompletedJobError

        return (UncompletedJobError,)

    def last_words(self, job_id: str) -> str:
        """The last line of a job's stderr."""
        try:
            file = self.logs / job_id / f"{job_id}_0_log.err"
            return last_line(file.read_text(encoding="utf-8", errors="replace"))
        except OSError:
            return ""


def last_line(text: str) -> str:
    """The last line that is not empty, at most 300 characters; "" if there is none."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
