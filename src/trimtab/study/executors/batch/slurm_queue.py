"""Slurm: submissions through submitit, states through squeue."""

from __future__ import annotations

import getpass
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from trimtab.study.executors.batch.chunk import Chunk
from trimtab.study.executors.batch.queue import Listed, RefusedError
from trimtab.study.executors.batch.submitit_queue import SubmititQueue, last_line

WAITING = (
    "PENDING", "CONFIGURING", "SUSPENDED", "STOPPED", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD",
    "SPECIAL_EXIT", "RESIZING",
)  # fmt: skip
RUNNING = ("RUNNING", "COMPLETING", "SIGNALING", "STAGE_OUT")
# Words of refusals that pass: a limit is reached, or the controller is busy or restarts.
PASSING = ("limit", "temporarily", "timed out", "unable to contact", "try again", "connection refused", "zero bytes")
COMMAND_SECONDS = 120.0


class Times(Protocol):
    """How patient the driver is with Slurm, in seconds; see ``Slurm``."""

    @property
    def settle_seconds(self) -> float: ...

    @property
    def query_seconds(self) -> float: ...

    @property
    def retry_seconds(self) -> float: ...


class SlurmQueue(SubmititQueue):
    """Slurm, through submitit for submissions and squeue for states.

    The states of submitit are not used: they need an accounting database, come up to ten minutes late, and count a
    suspended job as done.
    """

    mail_seconds = 1.0

    def __init__(self, logs: Path, make: Callable[[Path], Any], times: Times) -> None:
        super().__init__(logs, make)
        self.settle_seconds = times.settle_seconds
        self.query_seconds = times.query_seconds
        self.retry_seconds = times.retry_seconds

    def submit(self, tag: str, chunks: Sequence[Chunk]) -> Sequence[str]:
        """One array of jobs, or one job."""
        self.executor.update_parameters(job_name=tag)
        try:
            with self.executor.batch():
                jobs = [self.executor.submit(chunk) for chunk in chunks]
        except Exception as error:  # submitit wraps what sbatch says in several types
            line = last_line(str(error))
            raise RefusedError(f"sbatch: {line}", passing=any(word in line.lower() for word in PASSING)) from error
        return [job.job_id for job in jobs]

    def listed(self) -> Mapping[str, Listed] | None:
        """All jobs of the user, also those that ended a short time ago."""
        text = _output(["squeue", "-h", "-r", "-t", "all", "-u", getpass.getuser(), "-o", "%i|%T|%r|%j"])
        if text is None:
            return None
        jobs: dict[str, Listed] = {}
        for line in text.splitlines():
            job_id, state, reason, tag = ([part.strip() for part in line.split("|")] + [""] * 4)[:4]
            if state in RUNNING:
                jobs[job_id] = Listed("running", "", tag)
            elif state in WAITING or not state:
                jobs[job_id] = Listed("waiting", reason if state == "PENDING" else state, tag)
            else:
                jobs[job_id] = Listed("ended", state, tag)
        return jobs

    def cause(self, job_id: str) -> str:
        """From the accounting database if there is one, and the end of the job's stderr."""
        text = _output(["sacct", "-n", "-P", "-X", "-j", job_id, "-o", "State"]) or ""
        state = text.splitlines()[0].strip() if text.strip() else ""
        said = self.last_words(job_id)
        return ": ".join(part for part in (state, said) if part)

    def cancel(self, ids: Sequence[str]) -> None:
        """With scancel."""
        named = [job_id for job_id in ids if job_id]
        for start in range(0, len(named), 200):
            _output(["scancel", *named[start : start + 200]])


def _output(command: list[str]) -> str | None:
    """What a command prints; None if it fails or does not answer."""
    try:
        return subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=COMMAND_SECONDS, stdin=subprocess.DEVNULL
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
